/** Making and ending mounts, with both sessions: rights, refusals, what is left behind. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import * as fs from 'node:fs';
import * as path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { BlockError } from '../../src/errors';
import { mountKernel } from '../../src/fuse/kernel/mount';
import type { MountOptions, SessionKind } from '../../src/fuse/session';
import { abandon, unmount } from '../../src/fuse/unmount';
import {
  eventsOf,
  hasFusermount,
  MountRefused,
  NOBODY,
  type ServerOptions,
  skip,
  startServer,
  temporaryFolder,
  whyNot,
} from './harness';
import { DISK_BYTES } from './memory-filesystem';

const SESSIONS: SessionKind[] = ['kernel', 'native'];

function mountLine(mountpoint: string): string | undefined {
  return fs
    .readFileSync('/proc/self/mounts', 'utf8')
    .split('\n')
    .find((line) => line.split(' ')[1] === mountpoint);
}

async function refusal(t: ExecutionContext, options: ServerOptions): Promise<MountRefused> {
  const error = await t.throwsAsync<MountRefused>(startServer(t, options), { instanceOf: MountRefused });
  t.notRegex(error?.message ?? '', /\n/, 'one line');
  return error ?? new MountRefused('', '');
}

/** A private view of /dev with nothing in it but /dev/null and what `more` makes. */
function privateDev(more: string): string[] {
  const script = `mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && ${more} exec "$@"`;
  return ['unshare', '-m', 'sh', '-c', script, 'sh'];
}

for (const session of SESSIONS) {
  test.serial(
    `${session}: the mount shows type, source and flags, and is gone when the server has ended`,
    async (t) => {
      const impossible = await whyNot(session);
      if (impossible !== undefined) return skip(t, impossible);
      const source = 'imagefs:a,b\\c.qed';
      const server = await startServer(t, { session, source, flags: ['noatime', 'noexec'], allowOther: true });
      const line = mountLine(server.mountpoint) ?? '';
      // The kernel shows a backslash as an octal number.
      t.true(line.startsWith('imagefs:a,b\\134c.qed '), line);
      t.regex(line, / fuse\.imagefs /);
      for (const word of ['rw', 'nosuid', 'nodev', 'noexec', 'noatime', 'default_permissions', 'allow_other']) {
        t.true(line.split(/[ ,]/).includes(word), `${word} in ${line}`);
      }
      await server.stop();
      t.is(await server.ended, 0);
      t.is(mountLine(server.mountpoint), undefined);
    },
  );

  test.serial(`${session}: a read-only mount refuses to write with EROFS`, async (t) => {
    const impossible = await whyNot(session);
    if (impossible !== undefined) return skip(t, impossible);
    const { mountpoint } = await startServer(t, { session, readOnly: true });
    const disk = path.join(mountpoint, 'disk');
    t.is((await fs.promises.readFile(disk)).length, DISK_BYTES);
    await t.throwsAsync(fs.promises.open(disk, 'r+'), { code: 'EROFS' });
    await t.throwsAsync(fs.promises.mkdir(path.join(mountpoint, 'new')), { code: 'EROFS' });
    await t.throwsAsync(fs.promises.unlink(disk), { code: 'EROFS' });
    await t.throwsAsync(fs.promises.truncate(disk, 1), { code: 'EROFS' });
  });

  test.serial(`${session}: a user who is not root mounts through fusermount3, for himself`, async (t) => {
    const impossible = await whyNot(session);
    if (impossible !== undefined) return skip(t, impossible);
    if (!hasFusermount()) return skip(t, 'fusermount3 is not installed');
    const server = await startServer(t, { session, uid: NOBODY, source: 'imagefs:a,b' });
    const line = mountLine(server.mountpoint) ?? '';
    t.regex(line, new RegExp(`^imagefs:a,b .* fuse\\.imagefs .*user_id=${NOBODY}`));
    // Root is somebody else.
    await t.throwsAsync(fs.promises.stat(server.mountpoint), { code: 'EACCES' });
    await server.stop();
    t.is(await server.ended, 0);
    t.is(mountLine(server.mountpoint), undefined);
  });

  test.serial(`${session}: allow_other is refused to users with the line that allows it`, async (t) => {
    const impossible = await whyNot(session);
    if (impossible !== undefined) return skip(t, impossible);
    if (!hasFusermount()) return skip(t, 'fusermount3 is not installed');
    const configuration = fs.existsSync('/etc/fuse.conf') ? fs.readFileSync('/etc/fuse.conf', 'utf8') : '';
    if (/^user_allow_other/m.test(configuration)) {
      t.pass('allowed on this machine');
      return;
    }
    const error = await refusal(t, { session, uid: NOBODY, allowOther: true });
    t.is(error.code, 'DENIED');
    t.regex(error.message, /^Cannot mount at ".*": .*user_allow_other.*\/etc\/fuse\.conf/);
  });

  test.serial(`${session}: mountpoints that are missing, a file or not one's own are refused`, async (t) => {
    const impossible = await whyNot(session);
    if (impossible !== undefined) return skip(t, impossible);
    const folder = temporaryFolder(t);
    const missing = await refusal(t, { session, mountpoint: path.join(folder, 'missing') });
    t.is(missing.code, 'NOT_FOUND');
    t.is(missing.message, `Cannot mount at "${folder}/missing": No such file or directory`);
    const file = path.join(folder, 'file');
    fs.writeFileSync(file, '');
    t.teardown(() => fs.unlinkSync(file));
    t.regex((await refusal(t, { session, mountpoint: file })).message, /is not a directory$/);
    if (!hasFusermount()) return;
    const foreign = await refusal(t, { session, mountpoint: folder, uid: NOBODY });
    t.is(foreign.code, 'DENIED');
  });

  test.serial(`${session}: without /dev/fuse, or without rights to it, the message says what to do`, async (t) => {
    const impossible = await whyNot(session);
    if (impossible !== undefined) return skip(t, impossible);
    const none = await refusal(t, { session, wrap: privateDev('') });
    t.is(none.code, 'NOT_FOUND');
    t.regex(none.message, /there is no \/dev\/fuse; load the kernel module with "modprobe fuse"/);
    const closed = privateDev('mknod -m 600 /dev/fuse c 10 229 &&');
    const denied = await refusal(t, { session, wrap: closed, uid: NOBODY });
    t.is(denied.code, 'DENIED');
    t.regex(denied.message, /as root run "chmod 0666 \/dev\/fuse"/);
  });

  test.serial(`${session}: a dead mount is named as such, and can be unmounted`, async (t) => {
    const impossible = await whyNot(session);
    if (impossible !== undefined) return skip(t, impossible);
    const server = await startServer(t, { session });
    server.process.kill('SIGKILL');
    await server.ended;
    const { mountpoint } = server;
    await t.throwsAsync(fs.promises.stat(mountpoint), { code: 'ENOTCONN' });
    const error = await refusal(t, { session, mountpoint });
    t.is(error.code, 'BUSY');
    t.regex(error.message, /: a dead mount is there; detach it with "umount -l"/);
    await unmount(mountpoint, { lazy: false });
    t.is(mountLine(mountpoint), undefined);
    const again = await startServer(t, { session, mountpoint });
    await again.stop();
  });

  test.serial(
    `${session}: unmount() says BUSY while a file is open; lazily it leaves the file working to its end`,
    async (t) => {
      const impossible = await whyNot(session);
      if (impossible !== undefined) return skip(t, impossible);
      const server = await startServer(t, { session });
      const handle = await fs.promises.open(path.join(server.mountpoint, 'disk'), 'r+');
      const busy = await t.throwsAsync<BlockError>(unmount(server.mountpoint, { lazy: false }), {
        instanceOf: BlockError,
      });
      t.is(busy?.code, 'BUSY');
      t.is(busy?.message, `Cannot unmount "${server.mountpoint}": it is in use`);
      await unmount(server.mountpoint, { lazy: true });
      t.is(mountLine(server.mountpoint), undefined);
      t.is((await handle.write(Buffer.alloc(4096, 3), 0, 4096, 0)).bytesWritten, 4096);
      await handle.sync();
      t.is(server.process.exitCode, null, 'the server waits for the last user');
      await handle.close();
      t.is(await server.ended, 0);
      const gone = await t.throwsAsync<BlockError>(unmount(server.mountpoint, { lazy: false }), {
        instanceOf: BlockError,
      });
      t.is(gone?.code, 'NOT_FOUND');
    },
  );

  test.serial(`${session}: abandon() frees whoever waits`, async (t) => {
    const impossible = await whyNot(session);
    if (impossible !== undefined) return skip(t, impossible);
    const server = await startServer(t, { session });
    // Stopped, it will answer nobody.
    server.process.kill('SIGSTOP');
    const waiting = fs.promises.stat(path.join(server.mountpoint, 'disk'));
    const refused = t.throwsAsync<NodeJS.ErrnoException>(waiting);
    abandon(server.mountpoint);
    t.true(['ENOTCONN', 'ECONNABORTED', 'ENOENT'].includes((await refused)?.code ?? ''));
    t.is(mountLine(server.mountpoint), undefined);
    t.throws(() => abandon(server.mountpoint), { code: 'NOT_FOUND' });
  });
}

const options = (mountpoint: string): MountOptions => ({
  mountpoint,
  source: 'imagefs:test',
  readOnly: false,
  allowOther: false,
  kernelCache: false,
  flags: [],
});

test('mountKernel() refuses a word that is no mount option, and leaks no descriptor when it fails', async (t) => {
  const folder = temporaryFolder(t);
  t.throws(() => mountKernel({ ...options(folder), flags: ['growable'] }), {
    instanceOf: BlockError,
    message: `Cannot mount at "${folder}": unknown mount option "growable"`,
  });
  if ((await whyNot('kernel')) !== undefined) return;
  const before = fs.readdirSync('/proc/self/fd').length;
  // The kernel takes no more than a page of source.
  t.throws(() => mountKernel({ ...options(folder), source: 'x'.repeat(5000) }), { instanceOf: BlockError });
  t.is(fs.readdirSync('/proc/self/fd').length, before);
});

test.serial('kernel: without fusermount3 a user is told the package that has it', async (t) => {
  const impossible = await whyNot('kernel');
  if (impossible !== undefined) return skip(t, impossible);
  const error = await refusal(t, { session: 'kernel', uid: NOBODY, env: { PATH: '/nonexistent' } });
  t.is(error.code, 'NOT_FOUND');
  t.regex(error.message, /: fusermount3 was not found; install the package fuse3/);
});

test.serial('kernel: a request whose caller has been killed is served to its end and harms nobody', async (t) => {
  const impossible = await whyNot('kernel');
  if (impossible !== undefined) return skip(t, impossible);
  const server = await startServer(t, { session: 'kernel', threads: 2 });
  const reader = spawn('dd', [`if=${server.mountpoint}/held`, 'of=/dev/null', 'bs=4096', 'count=1'], {
    stdio: 'ignore',
  });
  const ended = once(reader, 'exit');
  while ((await eventsOf(server)).held === 0);
  reader.kill('SIGKILL');
  // Any number of requests passes the one that waits.
  for (let round = 0; round < 10; round++) await eventsOf(server);
  await (await fs.promises.open(path.join(server.mountpoint, 'release'))).close();
  await ended;
  t.is((await fs.promises.readFile(path.join(server.mountpoint, 'disk'))).length, DISK_BYTES);
  t.is(server.stderr(), '');
});

test.serial('kernel: a reply that the kernel refuses is followed by EIO, and the session goes on', async (t) => {
  const impossible = await whyNot('kernel');
  if (impossible !== undefined) return skip(t, impossible);
  const server = await startServer(t, { session: 'kernel', threads: 1 });
  const handle = await fs.promises.open(path.join(server.mountpoint, 'overlong'));
  await t.throwsAsync(handle.read(Buffer.alloc(100), 0, 100, 0), { code: 'EIO' });
  await handle.close();
  t.is((await fs.promises.readFile(path.join(server.mountpoint, 'disk'))).length, DISK_BYTES);
  t.regex(server.stderr(), /internal error/);
});
