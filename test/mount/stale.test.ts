import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import path from 'node:path';
import type { Writable } from 'node:stream';
import test from 'ava';
import { launchDaemon } from '../../src/daemon/launch';
import { findDaemons } from '../../src/daemon/processes';
import { isAlive } from '../../src/system/process';
import {
  assertFree,
  createImage,
  daemonAt,
  daemonConfig,
  directory,
  imagefs,
  isMounted,
  isRoot,
  mount,
  required,
  run,
  until,
  workspace,
} from './cli';

test('a mount whose daemon was killed is shown as dead, detached and reused', async (t) => {
  const dir = workspace(t);
  const image = await createImage(t, path.join(dir, 'vm.qed'), '1M');
  const mnt = directory(dir);
  const { pid } = await mount(t, [image, mnt]);
  fs.writeFileSync(path.join(mnt, 'disk'), 'x', { flag: 'r+' });
  process.kill(pid, 'SIGKILL');
  await until(t, 'the end of the daemon', () => !isAlive(pid));
  t.throws(() => fs.readFileSync(path.join(mnt, 'disk')), { code: 'ENOTCONN' });

  const list = await imagefs(['list', '--output', 'json']);
  const entry = (JSON.parse(list.stdout) as { mountpoint: string }[]).find(({ mountpoint }) => mountpoint === mnt);
  t.like(entry, { state: 'dead', pid: null, images: ['vm.qed'] } as object);

  const again = await imagefs(['mount', image, mnt]);
  t.deepEqual([again.code, again.stderr], [0, `imagefs: Detached a dead mount at "${mnt}"\n`]);
  t.is((await imagefs(['umount', mnt])).code, 0);
  t.false(isMounted(mnt));
  await assertFree(t, image);
});

test('imagefs umount detaches a dead mount', async (t) => {
  const dir = workspace(t);
  const image = await createImage(t, path.join(dir, 'vm.qed'), '1M');
  const mnt = directory(dir);
  const { pid } = await mount(t, [image, mnt]);
  process.kill(pid, 'SIGKILL');
  await until(t, 'the end of the daemon', () => !isAlive(pid));
  const { code, stderr } = await imagefs(['umount', mnt]);
  t.deepEqual([code, stderr], [0, `imagefs: Detached a dead mount at "${mnt}"\n`]);
  t.false(isMounted(mnt));
});

test('a worker that dies takes the mount down, releases it and says why', async (t) => {
  const dir = workspace(t);
  const image = await createImage(t, path.join(dir, 'vm.qed'), '1M');
  const mnt = directory(dir);
  const log = path.join(dir, 'log');
  const { pid } = await launchDaemon(daemonConfig(image, mnt, { log, testing: { workerDiesAtLookup: 'die' } }), [
    image,
  ]);
  fs.writeFileSync(path.join(mnt, 'disk'), 'x', { flag: 'r+' });
  t.is(daemonAt(t, mnt).pid, pid);
  // The request that the worker was serving is never answered by it: taking the mount down ends it. Asked by another process, so
  // that this one could not hang.
  const asked = await run('stat', [path.join(mnt, 'die')]);
  t.not(asked.code, 0);
  t.is(asked.signal, null);
  await until(t, 'the end of the daemon', () => !isAlive(pid));
  t.false(isMounted(mnt));
  t.regex(fs.readFileSync(log, 'utf8'), /A worker thread has ended unexpectedly .* is taken down/);
  await mount(t, [image, mnt]);
  t.is((await imagefs(['umount', mnt])).code, 0);
  await assertFree(t, image);
});

test('when a mount has failed its daemon is gone, and the locks with it', async (t) => {
  const dir = workspace(t);
  const image = await createImage(t, path.join(dir, 'vm.qed'), '1M');
  const missing = path.join(dir, 'missing');
  await t.throwsAsync(launchDaemon(daemonConfig(image, missing), [image]), { message: /missing/ });
  t.false(findDaemons().some(({ mountpoint }) => mountpoint === missing));
  await assertFree(t, image);
});

test('a flusher that dies takes the mount down and says why', async (t) => {
  const dir = workspace(t);
  const image = await createImage(t, path.join(dir, 'vm.qed'), '1M');
  const mnt = directory(dir);
  const log = path.join(dir, 'log');
  const trigger = path.join(dir, 'trigger');
  const { pid } = await launchDaemon(daemonConfig(image, mnt, { log, testing: { flusherDiesAtFile: trigger } }), [
    image,
  ]);
  fs.writeFileSync(trigger, '');
  await until(t, 'the end of the daemon', () => !isAlive(pid));
  t.false(isMounted(mnt));
  t.regex(fs.readFileSync(log, 'utf8'), /A flusher thread has ended unexpectedly/);
});

test('imagefs umount reports a failure of the last flush, and all the same releases everything', async (t) => {
  if (!required(t, isRoot(), 'needs root to mount a small tmpfs')) return;
  const dir = workspace(t);
  const small = directory(dir, 'small');
  t.is((await run('mount', ['-t', 'tmpfs', '-o', 'size=1M', 'none', small])).code, 0);
  const image = await createImage(t, path.join(small, 'vm.qed'), '16M');
  const mnt = directory(dir);
  const { pid } = await mount(t, [image, mnt]);
  fs.writeFileSync(path.join(mnt, 'disk'), 'x', { flag: 'r+' });
  // Nothing is left for the tables, which the flush writes.
  await run('dd', ['if=/dev/zero', `of=${small}/fill`, 'bs=4k']);
  const { code, stderr } = await imagefs(['umount', mnt]);
  t.is(code, 1);
  t.regex(stderr, /^imagefs: Unmounted "[^"]*", but [^\n]*vm\.qed[^\n]*No space left on device[^\n]*may be lost\n$/);
  t.false(isMounted(mnt));
  t.false(isAlive(pid));
  fs.rmSync(path.join(small, 'fill'));
  await mount(t, [image, mnt]);
  t.is((await imagefs(['umount', mnt])).code, 0);
});

test('imagefs umount does not say that all is well when the daemon is killed while it closes', async (t) => {
  const dir = workspace(t);
  const image = await createImage(t, path.join(dir, 'vm.qed'), '1M');
  const mnt = directory(dir);
  const { pid } = await mount(t, [image, mnt]);
  // Stopped, it cannot close anything once it is unmounted.
  process.kill(pid, 'SIGSTOP');
  const umount = imagefs(['umount', mnt]);
  await until(t, 'the unmount', () => !isMounted(mnt));
  process.kill(pid, 'SIGKILL');
  const { code, stderr } = await umount;
  t.is(code, 1);
  // On a busy machine five seconds may pass before this process kills: then the command has also said that it waits.
  const last = stderr.trimEnd().split('\n').at(-1);
  t.is(last, `imagefs: Unmounted "${mnt}", but the daemon was killed before it had written everything`);
});

test('a daemon whose command has gone before the answer unmounts again', async (t) => {
  const dir = workspace(t);
  const image = await createImage(t, path.join(dir, 'vm.qed'), '1M');
  const mnt = directory(dir);
  const log = path.join(dir, 'log');
  const main = path.resolve(__dirname, '../../src/daemon/main.js');
  const daemon = spawn(process.execPath, [main], { stdio: ['ignore', 'ignore', 'inherit', 'pipe'] });
  const control = daemon.stdio[3] as Writable;
  control.write(`${JSON.stringify(daemonConfig(image, mnt, { log }))}\n`, () => control.destroy());
  t.deepEqual(await once(daemon, 'exit'), [0, null]);
  t.false(isMounted(mnt));
  t.regex(fs.readFileSync(log, 'utf8'), /The command that asked for the mount has gone/);
  await assertFree(t, image);
});
