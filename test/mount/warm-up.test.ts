/** After mounting, a worker practises on an image in memory. The user's image knows nothing of it. */
import fs from 'node:fs';
import path from 'node:path';
import test from 'ava';
import { MIB } from '../../src/units';
import { beginsWarmUp, directory, imagefs, mount, warmedUp, workspace } from './cli';

test('an idle mount warms up in memory: it comes to an end, answers meanwhile, and the image stays as it was', async (t) => {
  const dir = workspace(t);
  const image = path.join(dir, 'vm.qcow2');
  t.is((await imagefs(['create', '-f', 'qcow2', image, '16M'])).code, 0);
  const before = fs.readFileSync(image);
  const mnt = directory(dir);
  const { pid } = await mount(t, [image, mnt]);
  await beginsWarmUp(t, pid);
  t.is(fs.statSync(path.join(mnt, 'disk')).size, 16 * MIB);
  await warmedUp(t, pid);

  const stats = JSON.parse(fs.readFileSync(path.join(mnt, 'stats.json'), 'utf8'));
  t.is(stats.wr_operations, 0);
  t.is((await imagefs(['umount', mnt])).code, 0);
  t.true(fs.readFileSync(image).equals(before));
});
