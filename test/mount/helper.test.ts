import fs from 'node:fs';
import path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { isAlive } from '../../src/system/process';
import { createImage, daemonAt, directory, isMounted, isRoot, PROJECT, required, run, until, workspace } from './cli';

const HELPER = path.join(PROJECT, 'bin/mount.imagefs');
const LINK = '/sbin/mount.imagefs';

/** mount(8) looks for helpers in /sbin only. One test at a time uses the link. */
function linkHelper(t: ExecutionContext): boolean {
  if (!required(t, isRoot(), 'needs root for /sbin/mount.imagefs')) return false;
  const old = fs.lstatSync(LINK, { throwIfNoEntry: false });
  if (old?.isSymbolicLink() && fs.realpathSync(LINK) === HELPER) return true;
  if (!required(t, old === undefined, `${LINK} exists and is not ours`)) return false;
  fs.symlinkSync(HELPER, LINK);
  t.teardown(() => fs.rmSync(LINK));
  return true;
}

test.serial('mount -t imagefs IMAGE DIR mounts, umount(8) unmounts and the daemon ends', async (t) => {
  if (!linkHelper(t)) return;
  const dir = workspace(t);
  const image = await createImage(t, path.join(dir, 'vm.qed'), '1M');
  const mnt = directory(dir);
  const mounted = await run('mount', ['-t', 'imagefs', '-o', 'ro,threads=2,noexec', image, mnt]);
  t.deepEqual([mounted.code, mounted.stderr], [0, '']);
  const { pid, readOnly } = daemonAt(t, mnt);
  t.true(readOnly);
  t.is(fs.readFileSync(path.join(mnt, 'disk')).length, 1024 * 1024);
  t.is((await run('umount', [mnt])).code, 0);
  await until(t, 'the end of the daemon', () => !isAlive(pid));
});

test.serial('an fstab line works: mount DIR, mount -a twice, umount DIR', async (t) => {
  if (!linkHelper(t)) return;
  const dir = workspace(t);
  const image = await createImage(t, path.join(dir, 'vm.qed'), '1M');
  const mnt = directory(dir);
  const fstab = path.join(dir, 'fstab');
  fs.writeFileSync(
    fstab,
    `${image} ${mnt} imagefs defaults,nofail,_netdev,x-systemd.automount,format=qed,threads=8 0 0\n`,
  );
  const byDirectory = await run('mount', ['--fstab', fstab, mnt]);
  t.deepEqual([byDirectory.code, byDirectory.stderr], [0, '']);
  fs.writeFileSync(path.join(mnt, 'disk'), 'x', { flag: 'r+' });
  const all = await run('mount', ['--all', '--fstab', fstab]);
  t.deepEqual([all.code, all.stderr], [0, '']);
  const { pid } = daemonAt(t, mnt);
  t.is((await run('umount', [mnt])).code, 0);
  await until(t, 'the end of the daemon', () => !isAlive(pid));
  t.is((await run('mount', ['--all', '--fstab', fstab])).code, 0);
  t.true(isMounted(mnt));
});

test.serial('mount(8) passes on failures: exit code 32 and one line', async (t) => {
  if (!linkHelper(t)) return;
  const dir = workspace(t);
  const image = await createImage(t, path.join(dir, 'vm.qed'), '1M');
  const mnt = directory(dir);
  fs.writeFileSync(path.join(mnt, 'mine'), '');
  const { code, stderr } = await run('mount', ['-t', 'imagefs', image, mnt]);
  t.is(code, 32);
  t.regex(stderr, /^mount\.imagefs: Cannot mount at ".*": the directory is not empty/);
});

test.serial('exit bits: 1 usage, 32 failure; -s skips unknown options; -f mounts nothing', async (t) => {
  const dir = workspace(t);
  const image = await createImage(t, path.join(dir, 'vm.qed'), '1M');
  const mnt = directory(dir);
  const helper = (...args: string[]) => run(process.execPath, [HELPER, ...args]);
  t.is((await helper(image)).code, 1);
  t.is((await helper(image, mnt, '-o', 'nonsense')).code, 1);
  t.is((await helper(path.join(dir, 'no.qed'), mnt)).code, 32);
  t.is((await helper(image, mnt, '-f')).code, 0);
  t.false(isMounted(mnt));
  const sloppy = await helper(image, mnt, '-s', '-n', '-v', '-o', 'rw,nonsense', '-t', 'imagefs');
  t.is(sloppy.code, 0, sloppy.stderr);
  t.regex(sloppy.stderr, /is mounted at/);
  t.true(isMounted(mnt));
});
