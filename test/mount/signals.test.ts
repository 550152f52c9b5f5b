import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import path from 'node:path';
import test from 'ava';
import { isAlive } from '../../src/system/process';
import {
  assertFree,
  createImage,
  directory,
  holder,
  IMAGEFS,
  imagefs,
  isMounted,
  isRoot,
  mount,
  required,
  run,
  until,
  workspace,
} from './cli';

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  test(`${signal} to an idle mount flushes, unmounts and ends`, async (t) => {
    const dir = workspace(t);
    const image = await createImage(t, path.join(dir, 'vm.qed'), '1M');
    const mnt = directory(dir);
    const { pid } = await mount(t, [image, mnt]);
    fs.writeFileSync(path.join(mnt, 'disk'), signal, { flag: 'r+' });
    process.kill(pid, signal);
    await until(t, 'the end of the daemon', () => !isAlive(pid));
    t.false(isMounted(mnt));
    await assertFree(t, image);
    await mount(t, ['-r', image, mnt]);
    t.is(fs.readFileSync(path.join(mnt, 'disk'), 'utf8').slice(0, signal.length), signal);
  });
}

test('SIGINT to the command in the foreground unmounts, exit code 0', async (t) => {
  const dir = workspace(t);
  const image = await createImage(t, path.join(dir, 'vm.qed'), '1M');
  const mnt = directory(dir);
  const child = spawn(process.execPath, [IMAGEFS, 'mount', '-f', image, mnt], { stdio: ['ignore', 'pipe', 'ignore'] });
  t.teardown(() => child.kill('SIGKILL'));
  await once(child.stdout, 'data');
  child.kill('SIGINT');
  t.deepEqual(await once(child, 'exit'), [0, null]);
  t.false(isMounted(mnt));
  await assertFree(t, image);
});

test('a foreground daemon unmounts when its command is killed', async (t) => {
  const dir = workspace(t);
  const image = await createImage(t, path.join(dir, 'vm.qed'), '1M');
  const mnt = directory(dir);
  const child = spawn(process.execPath, [IMAGEFS, 'mount', '-f', image, mnt], { stdio: ['ignore', 'pipe', 'ignore'] });
  await once(child.stdout, 'data');
  child.kill('SIGKILL');
  await until(t, 'the unmount', () => !isMounted(mnt));
  await assertFreeSoon(t, image);
});

async function assertFreeSoon(t: Parameters<typeof assertFree>[0], image: string): Promise<void> {
  // The mount is gone before the daemon is.
  for (let tries = 0; (await imagefs(['check', image])).code !== 0 && tries < 50; tries++);
  await assertFree(t, image);
}

test('SIGTERM to a busy mount: says who holds it, writes through, and unmounts when it is let go', async (t) => {
  const dir = workspace(t);
  const image = await createImage(t, path.join(dir, 'vm.qed'), '1M');
  const mnt = directory(dir);
  const log = path.join(dir, 'log');
  const { pid } = await mount(t, ['--log', log, image, mnt]);
  const child = await holder(t, `globalThis.fd = fs.openSync('${mnt}/disk', 'r+')`);
  process.kill(pid, 'SIGTERM');
  await until(t, 'the message', () => fs.readFileSync(log, 'utf8').includes(`(pid ${child.pid}: "${mnt}/disk" open)`));
  process.kill(pid, 'SIGTERM');

  // Still there, and what is written now reaches the image's tables without anybody asking for it.
  fs.writeFileSync(path.join(mnt, 'disk'), 'late data', { flag: 'r+' });
  const copy = path.join(dir, 'copy.qed');
  await until(t, 'the write-through', () => {
    fs.copyFileSync(image, copy);
    return fs.readFileSync(copy).includes('late data') && firstTableEntry(copy) !== 0;
  });
  t.true(isMounted(mnt));

  child.kill('SIGKILL');
  await until(t, 'the end of the daemon', () => !isAlive(pid));
  t.false(isMounted(mnt));
  await assertFree(t, image);
});

/** First entry of the L1 table of a QED image: 0 until a flush has written it. */
function firstTableEntry(image: string): number {
  const bytes = fs.readFileSync(image);
  return Number(bytes.readBigUInt64LE(Number(bytes.readBigUInt64LE(40))));
}

test('imagefs umount of a busy mount names the holders, changes nothing, and --wait waits', async (t) => {
  const dir = workspace(t);
  const image = await createImage(t, path.join(dir, 'vm.qed'), '1M');
  const mnt = directory(dir);
  await mount(t, [image, mnt]);
  const child = await holder(t, '', { cwd: mnt });
  const busy = await imagefs(['umount', mnt]);
  t.is(busy.code, 1);
  t.is(busy.stderr, `imagefs: Cannot unmount "${mnt}": in use by node (pid ${child.pid}: working directory)\n`);
  t.is(fs.readFileSync(path.join(mnt, 'disk')).length, 1024 * 1024);

  const waiting = imagefs(['umount', '--wait', mnt]);
  child.kill('SIGKILL');
  t.is((await waiting).code, 0);
  await assertFree(t, image);
});

test('imagefs umount names a loop device over the disk', async (t) => {
  if (!required(t, isRoot() && fs.existsSync('/dev/loop-control'), 'needs root and loop devices')) return;
  const dir = workspace(t);
  const image = await createImage(t, path.join(dir, 'vm.qed'), '1M');
  const mnt = directory(dir);
  await mount(t, [image, mnt]);
  const loop = await run('losetup', ['--find', '--show', path.join(mnt, 'disk')]);
  t.is(loop.code, 0, loop.stderr);
  const device = loop.stdout.trim();
  // Once: a moment later it may be the device of a test that runs beside this one.
  let attached = true;
  const detach = async () => {
    if (!attached) return;
    attached = false;
    t.is((await run('losetup', ['--detach', device])).code, 0);
  };
  t.teardown(detach);
  const busy = await imagefs(['umount', mnt]);
  t.is(busy.code, 1);
  t.true(busy.stderr.includes(`loop device ${device} (over "${mnt}/disk")`), busy.stderr);
  await detach();
  t.is((await imagefs(['umount', '--wait', mnt])).code, 0);
});

test('imagefs umount --lazy detaches a busy mount; the daemon ends with the last user', async (t) => {
  const dir = workspace(t);
  const image = await createImage(t, path.join(dir, 'vm.qed'), '1M');
  const mnt = directory(dir);
  const { pid } = await mount(t, [image, mnt]);
  const child = await holder(t, `globalThis.fd = fs.openSync('${mnt}/disk', 'r+'); fs.writeSync(fd, 'kept')`);
  const lazy = await imagefs(['umount', '--lazy', mnt]);
  t.deepEqual(
    [lazy.code, lazy.stderr],
    [0, `imagefs: Detached "${mnt}"; the daemon (pid ${pid}) ends when the last user lets go\n`],
  );
  t.false(isMounted(mnt));
  t.true(isAlive(pid));
  child.kill('SIGKILL');
  await until(t, 'the end of the daemon', () => !isAlive(pid));
  await assertFree(t, image);
});
