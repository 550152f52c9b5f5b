/** After mounting, a worker practises on an image in memory. The user's image knows nothing of it. */
import fs from 'node:fs';
import path from 'node:path';
import test from 'ava';
import { MIB } from '../../src/units';
import { directory, imagefs, mount, until, workspace } from './cli';

/** Bytes that the process has written so far, wherever: proc(5), wchar. */
function written(pid: number): number {
  return Number(/^wchar: (\d+)$/m.exec(fs.readFileSync(`/proc/${pid}/io`, 'utf8'))?.[1]);
}

function practises(pid: number): boolean {
  return fs.readdirSync(`/proc/${pid}/fd`).some((fd) => {
    try {
      return fs.readlinkSync(`/proc/${pid}/fd/${fd}`).includes('warm-up');
    } catch {
      return false; // Closed meanwhile.
    }
  });
}

test('an idle mount warms up in memory: it comes to an end, answers meanwhile, and the image stays as it was', async (t) => {
  const dir = workspace(t);
  const image = path.join(dir, 'vm.qcow2');
  t.is((await imagefs(['create', '-f', 'qcow2', image, '16M'])).code, 0);
  const before = fs.readFileSync(image);
  const mnt = directory(dir);
  const { pid } = await mount(t, [image, mnt]);
  await until(t, 'the beginning of the practice', () => written(pid) > MIB);
  t.is(fs.statSync(path.join(mnt, 'disk')).size, 16 * MIB);
  await until(t, 'the end of the practice', () => !practises(pid));

  const stats = JSON.parse(fs.readFileSync(path.join(mnt, 'stats.json'), 'utf8'));
  t.is(stats.wr_operations, 0);
  t.is((await imagefs(['umount', mnt])).code, 0);
  t.true(fs.readFileSync(image).equals(before));
});
