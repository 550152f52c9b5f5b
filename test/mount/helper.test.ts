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

/** In a mount namespace of its own, so that the host's fstab and helpers stay as they are. */
const USER_MOUNTS = `set -e
mount --bind "$1/fstab" /etc/fstab
mount --bind "$1/sbin" /sbin
as() { setpriv --reuid=65534 --regid=65534 --clear-groups "$@"; }
as mount "$1/own.qed"
grep "$1/mnt fuse.imagefs" /proc/mounts
head -c 512 "$1/mnt/disk" > /dev/null 2>&1 && echo "root gets in"
as umount "$1/mnt"
as mount "$1/other.qed" 2>&1 && echo "mounted what the user may not open"
grep "$1/mnt " /proc/mounts || echo none
`;

test.serial('a user whom fstab lets mount opens the image with their own rights, and owns the mount', async (t) => {
  if (!required(t, isRoot(), 'needs root to become another user')) return;
  if (!required(t, fs.existsSync('/etc/fstab'), 'needs /etc/fstab')) return;
  const dir = workspace(t);
  fs.chmodSync(dir, 0o755);
  fs.chmodSync('/dev/fuse', 0o666);
  const mnt = directory(dir);
  fs.chownSync(mnt, 65534, 65534);
  for (const name of ['own', 'other']) {
    const image = await createImage(t, path.join(dir, `${name}.qed`), '1M');
    fs.chmodSync(image, 0o600);
    if (name === 'own') fs.chownSync(image, 65534, 65534);
    fs.appendFileSync(path.join(dir, 'fstab'), `${image} ${mnt} imagefs user,noauto 0 0\n`);
  }
  // The project may lie where other users cannot go.
  const project = directory(dir, 'project');
  t.is((await run('mount', ['--bind', PROJECT, project])).code, 0);
  fs.symlinkSync(path.join(project, 'bin/mount.imagefs'), path.join(directory(dir, 'sbin'), 'mount.imagefs'));
  const { code, stdout, stderr } = await run('unshare', ['-m', 'bash', '-c', USER_MOUNTS, 'bash', dir]);
  t.is(code, 0, stderr);
  const lines = stdout.trim().split('\n');
  t.regex(lines[0] ?? '', /^\S+own\.qed .* rw,nosuid,nodev,.*user_id=65534,.*default_permissions/);
  t.regex(lines[1] ?? '', /^mount\.imagefs: Cannot open ".*other\.qed".*: Permission denied$/);
  t.deepEqual(lines.slice(2), ['none']);
});
