/** `imagefs snapshot` on images that are mounted: through the mount. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import test from 'ava';
import { daemonAt, imagefs, workspace } from '../mount/cli';
import { mount, onBothSessions, standAloneImage, succeed } from './disk-mount';
import { leaveSound, put, qcow2, qemuIsHere, snapshotsIn } from './snapshot-mount';

onBothSessions('imagefs snapshot works through the mount of an image', async (t, session) => {
  if (!(await qemuIsHere(t))) return;
  const directory = workspace(t);
  const image = await qcow2(t, directory);
  await succeed(t, 'qemu-img', ['snapshot', '-c', 'with/slash', image]);
  const mounted = await mount(t, session, [image]);
  const { names } = snapshotsIn(mounted);
  const link = path.join(directory, 'link');
  fs.symlinkSync(image, link);
  const says = async (code: number, ...args: string[]): Promise<string> => {
    const ran = await imagefs(['snapshot', ...args]);
    t.is(ran.code, code, `${args.join(' ')}: ${ran.stdout}${ran.stderr}`);
    return ran.stdout + ran.stderr;
  };
  const first = () => fs.readFileSync(mounted.disk).subarray(0, 3).toString();

  put(mounted.disk, Buffer.from('one'), 0);
  t.is(await says(0, '-c', 'first', image), '');
  t.deepEqual(names().sort(), ['first', 'with_slash']);
  t.regex(await says(1, '-c', 'first', link), /Could not create snapshot 'first': .*a snapshot of this name already/);
  t.regex(await says(1, '-c', 'a/b', image), /cannot be the name of a folder/);
  put(mounted.disk, Buffer.from('two'), 0);
  t.regex(await says(0, '-l', link), /^1 +with\/slash .*\n2 +first /m);
  await says(0, '-a', 'first', image);
  t.is(first(), 'one');

  put(mounted.disk, Buffer.from('two'), 0);
  const fd = fs.openSync(mounted.disk, 'r');
  t.regex(await says(1, '-a', '2', image), /Could not apply snapshot '2': .*in use/);
  t.is(first(), 'two');
  await says(0, '-a', '2', '--force', image);
  t.is(first(), 'one');
  fs.closeSync(fd);

  t.regex(await says(1, '-d', 'none', image), /snapshot not found/);
  t.regex(await says(1, '-a', 'none', image), /snapshot not found/);
  t.regex(await says(1, '-c', 'x', '--force', image), /--force goes with -a/);
  await says(0, '-d', 'with/slash', image);
  t.deepEqual(names(), ['first']);
  await leaveSound(t, mounted, image, ['first']);
});

test.serial('imagefs snapshot finds the image among several of a mount', async (t) => {
  if (!(await qemuIsHere(t))) return;
  const directory = workspace(t);
  const other = standAloneImage(directory);
  const image = await qcow2(t, directory);
  const mounted = await mount(t, 'kernel', [other, image]);
  const ran = await imagefs(['snapshot', '-c', 'here', image]);
  t.is(ran.code, 0, ran.stderr);
  t.deepEqual(fs.readdirSync(path.join(mounted.mountpoint, 'vm.qcow2', 'snapshots')), ['here']);
  t.not((await imagefs(['snapshot', '-c', 'here', other])).code, 0);
  await leaveSound(t, mounted, image, ['here']);
});

test.serial('imagefs snapshot of one image does not wait for the daemon of another', async (t) => {
  if (!(await qemuIsHere(t))) return;
  const [mine, other] = [await qcow2(t, workspace(t)), standAloneImage(workspace(t))];
  const mounted = await mount(t, 'kernel', [other]);
  const { pid } = daemonAt(t, mounted.mountpoint);
  process.kill(pid, 'SIGSTOP');
  try {
    const listed = await imagefs(['snapshot', '-l', mine]);
    const taken = await imagefs(['snapshot', '-c', 'first', mine]);
    t.deepEqual([listed.code, listed.signal, taken.code, taken.signal], [0, null, 0, null]);
  } finally {
    process.kill(pid, 'SIGCONT');
  }
});
