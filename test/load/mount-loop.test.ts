import * as fs from 'node:fs';
import * as path from 'node:path';
import test from 'ava';
import { isRoot, required, workspace } from '../mount/cli';
import { mountOnce, preparePlace, takeCensus } from './mount-loop';

test('mounts and unmounts of every kind leave no process, descriptor, loop device, mount or file behind', async (t) => {
  if (!required(t, isRoot(), 'needs root for loop devices and to detach dead mounts')) return;
  const directory = workspace(t);
  const temporary = path.join(directory, 'tmp');
  fs.mkdirSync(temporary);
  process.env.TMPDIR = temporary;
  const place = preparePlace(directory);
  const seen = new Set<string>();
  // The first one makes what stays: a thread pool, a broken image.
  seen.add(await mountOnce(place, 19));
  const before = takeCensus(directory, temporary);
  for (const index of [0, 7, 8, 9, 17, 18, 27]) seen.add(await mountOnce(place, index));
  t.is(seen.size, 8, [...seen].join(', '));
  t.deepEqual(takeCensus(directory, temporary), before);
});
