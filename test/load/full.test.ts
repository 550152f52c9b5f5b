import * as path from 'node:path';
import test from 'ava';
import { MIB } from '../../src/units';
import { isRoot, required, workspace } from '../mount/cli';
import { runFull, runLostSync, smallTmpfs } from './full';

for (const [format, end] of [
  ['qed', 'kill'],
  ['qcow2', 'room'],
] as const) {
  test(`${format}: a full host is ENOSPC for who writes; all else can be read, and goes on (${end})`, async (t) => {
    if (!required(t, isRoot(), 'needs root to mount a small tmpfs')) return;
    const directory = workspace(t);
    const host = await smallTmpfs(path.join(directory, 'host'), 6 * MIB);
    const report = await runFull(host, path.join(directory, 'mnt'), format, [], end);
    t.deepEqual(report.codes, ['ENOSPC']);
  });
}

test('a sync that the host has failed once fails until the image is opened again', async (t) => {
  if (!required(t, isRoot(), 'needs root to mount an ext4 on a loop device')) return;
  const directory = workspace(t);
  const codes = await runLostSync(directory, path.join(directory, 'mnt'), 'qed');
  t.is(codes.length, 3);
});
