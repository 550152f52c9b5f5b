import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { isAlive } from '../../src/system/process';
import {
  createImage,
  daemonAt,
  directory,
  imagefs,
  isMounted,
  isRoot,
  PROJECT,
  type Result,
  required,
  run,
  workspace,
} from './cli';

const NOBODY = { uid: 65534, gid: 65534, env: { ...process.env, HOME: '/nonexistent' } };

interface UserPlace {
  dir: string;
  image: string;
  mnt: string;
  asUser(...args: string[]): Promise<Result>;
}

/** A workspace that belongs to the user, and the project at a path that the user may enter. */
async function placeForUser(t: ExecutionContext): Promise<UserPlace | undefined> {
  if (!required(t, isRoot(), 'needs root to become another user')) return undefined;
  fs.chmodSync('/dev/fuse', 0o666);
  const dir = workspace(t);
  fs.chmodSync(dir, 0o755);
  const image = await createImage(t, path.join(dir, 'vm.qed'), '1M');
  const mnt = directory(dir);
  for (const file of [image, mnt]) fs.chownSync(file, NOBODY.uid, NOBODY.gid);
  const project = directory(dir, 'project');
  t.is((await run('mount', ['--bind', PROJECT, project])).code, 0);
  const asUser = (...args: string[]): Promise<Result> => {
    return run(process.execPath, [path.join(project, 'bin/imagefs'), ...args], { ...NOBODY, cwd: dir });
  };
  return { dir, image, mnt, asUser };
}

test('an unprivileged user mounts, writes and unmounts', async (t) => {
  const place = await placeForUser(t);
  if (place === undefined) return;
  const { image, mnt, asUser } = place;
  const mounted = await asUser('mount', image, mnt);
  t.deepEqual([mounted.code, mounted.stderr], [0, '']);
  const { pid, uid } = daemonAt(t, mnt);
  t.is(uid, NOBODY.uid);
  const dd = await run('dd', ['if=/dev/zero', `of=${mnt}/disk`, 'bs=64k', 'count=2', 'conv=notrunc'], NOBODY);
  t.is(dd.code, 0, dd.stderr);
  // The mount is for its owner alone: not even root gets in.
  t.throws(() => fs.readdirSync(mnt), { code: 'EACCES' });
  const umount = await asUser('umount', mnt);
  t.deepEqual([umount.code, umount.stderr], [0, '']);
  t.false(isMounted(mnt));
  t.false(isAlive(pid));
});

test('a user cannot unmount what root has mounted; root can unmount what a user has mounted', async (t) => {
  const place = await placeForUser(t);
  if (place === undefined) return;
  const { dir, image, mnt, asUser } = place;
  const rootsImage = await createImage(t, path.join(dir, 'root.qed'), '1M');
  const rootsMount = directory(dir, 'root');
  t.is((await run(process.execPath, [path.join(PROJECT, 'bin/imagefs'), 'mount', rootsImage, rootsMount])).code, 0);
  const denied = await asUser('umount', rootsMount);
  t.is(denied.code, 1);
  t.is(
    denied.stderr,
    `imagefs: Cannot unmount "${rootsMount}": it was mounted by user 0; only that user and root may\n`,
  );

  t.is((await asUser('mount', image, mnt)).code, 0);
  const umount = await run(process.execPath, [path.join(PROJECT, 'bin/imagefs'), 'umount', mnt]);
  t.deepEqual([umount.code, umount.stderr], [0, '']);
});

test('an image that the user may not open, and --allow-other without permission, are one line', async (t) => {
  const place = await placeForUser(t);
  if (place === undefined) return;
  const { image, mnt, asUser } = place;
  fs.chownSync(image, 0, 0);
  fs.chmodSync(image, 0o600);
  const denied = await asUser('mount', image, mnt);
  t.is(denied.code, 1);
  t.is(denied.stderr, `imagefs: Cannot open "${image}": Permission denied\n`);
  fs.chmodSync(image, 0o644);
  const readOnly = await asUser('mount', image, mnt);
  t.is(readOnly.code, 1);
  t.regex(readOnly.stderr, /^imagefs: Cannot open ".*vm\.qed".*Permission denied[^\n]*\n$/);
  if (/^user_allow_other/m.test(fs.readFileSync('/etc/fuse.conf', 'utf8'))) return;
  const other = await asUser('mount', '-r', '--allow-other', image, mnt);
  t.is(other.code, 1);
  t.regex(other.stderr, /^imagefs: [^\n]*user_allow_other[^\n]*\n$/);
  t.false(isMounted(mnt));
});

test('a process that looks like a daemon cannot make imagefs snapshot enter its folder or believe it', async (t) => {
  if (!required(t, isRoot(), 'needs root to become another user')) return;
  const dir = workspace(t);
  fs.chmodSync(dir, 0o755);
  const image = path.join(dir, 'vm.qcow2');
  t.is((await imagefs(['create', '-q', '-f', 'qcow2', image, '1M'])).code, 0);
  const trap = directory(dir, 'trap');
  fs.mkdirSync(path.join(trap, 'snapshots'));
  fs.mkdirSync(path.join(dir, 'daemon'));
  const program = path.join(dir, 'daemon', 'main.js');
  fs.writeFileSync(program, "console.log('ready'); setInterval(() => {}, 1e6)");
  fs.writeFileSync(path.join(trap, 'info.json'), JSON.stringify({ filename: image, snapshots: [{ name: 'lie' }] }));
  const words = [program, 'imagefs-daemon', trap, 'kernel', 'rw', '--', image];
  const child = spawn(process.execPath, words, { ...NOBODY, stdio: ['ignore', 'pipe', 'inherit'] });
  t.teardown(() => child.kill('SIGKILL'));
  await once(child.stdout, 'data');
  const taken = await imagefs(['snapshot', '-c', 'real', image]);
  t.deepEqual([taken.code, taken.stderr], [0, '']);
  t.deepEqual(fs.readdirSync(path.join(trap, 'snapshots')), []);
  const listed = await imagefs(['snapshot', '-l', image]);
  t.regex(listed.stdout, / real /);
  t.notRegex(listed.stdout, /lie/);
});
