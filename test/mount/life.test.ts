import fs from 'node:fs';
import path from 'node:path';
import test from 'ava';
import { MountTable } from '../../src/daemon/mountinfo';
import { isAlive } from '../../src/system/process';
import { assertFree, createImage, daemonAt, directory, imagefs, isMounted, mount, run, until, workspace } from './cli';

for (const session of ['kernel', 'native']) {
  test(`${session}: what dd writes is in the image when imagefs umount returns, and everything is released`, async (t) => {
    const dir = workspace(t);
    const image = await createImage(t, path.join(dir, 'vm.qed'), '16M');
    const mnt = directory(dir);
    const { pid } = await mount(t, ['--session', session, image, mnt]);

    t.deepEqual(fs.readdirSync(mnt).sort(), ['disk', 'info.json', 'layers', 'map.json', 'stats.json']);
    const data = path.join(dir, 'data');
    fs.writeFileSync(data, Buffer.alloc(3 * 1024 * 1024, 'imagefs '));
    const dd = await run('dd', [`if=${data}`, `of=${mnt}/disk`, 'bs=64k', 'seek=3', 'conv=notrunc']);
    t.is(dd.code, 0, dd.stderr);

    const umount = await imagefs(['umount', mnt]);
    t.deepEqual(umount, { code: 0, signal: null, stdout: '', stderr: '' });
    t.false(isAlive(pid));
    t.false(isMounted(mnt));
    await assertFree(t, image);

    await mount(t, ['-r', '--session', session, image, mnt]);
    const disk = fs.readFileSync(path.join(mnt, 'disk'));
    t.is(disk.length, 16 * 1024 * 1024);
    t.true(disk.subarray(3 * 65536, 3 * 65536 + 3 * 1024 * 1024).equals(fs.readFileSync(data)));
    t.is((await imagefs(['umount', mnt])).code, 0);
  });
}

test('the mount shows its source, its type and safe options in the table of mounts', async (t) => {
  const dir = workspace(t);
  const image = await createImage(t, path.join(dir, 'a b.qed'), '1M');
  const mnt = directory(dir, 'm n');
  await mount(t, ['-o', 'ro,noexec,noatime', image, mnt]);
  const entry = MountTable.read().find(mnt);
  t.like(entry, { type: 'fuse.imagefs', source: 'imagefs:a b.qed' });
  for (const option of ['ro', 'nosuid', 'nodev', 'noexec', 'noatime']) t.true(entry?.options.includes(option), option);
  const owner = `user_id=${process.getuid?.()}`;
  for (const option of ['default_permissions', owner]) t.true(entry?.superOptions.includes(option), option);
  t.throws(() => fs.openSync(path.join(mnt, 'disk'), 'r+'), { code: 'EROFS' });
});

test('umount by the kernel alone also ends the daemon, with everything on disk', async (t) => {
  const dir = workspace(t);
  const image = await createImage(t, path.join(dir, 'vm.qed'), '1M');
  const mnt = directory(dir);
  const { pid } = await mount(t, [image, mnt]);
  fs.writeFileSync(path.join(mnt, 'disk'), 'guest', { flag: 'r+' });
  t.is((await run('umount', [mnt])).code, 0);
  await until(t, 'the end of the daemon', () => !isAlive(pid));
  await assertFree(t, image);
});

test('a mounted image cannot be mounted a second time for writing', async (t) => {
  const dir = workspace(t);
  const image = await createImage(t, path.join(dir, 'vm.qed'), '1M');
  await mount(t, [image, directory(dir, 'one')]);
  const two = directory(dir, 'two');
  const { code, stderr } = await imagefs(['mount', image, two]);
  t.is(code, 1);
  t.regex(stderr, /^imagefs: .*vm\.qed.*lock.*\n$/);
  t.false(isMounted(two));
});

test('--foreground prints how to stop and returns when the mount is gone', async (t) => {
  const dir = workspace(t);
  const image = await createImage(t, path.join(dir, 'vm.qed'), '1M');
  const mnt = directory(dir);
  const running = imagefs(['mount', '-f', image, mnt]);
  await until(t, 'the mount', () => isMounted(mnt));
  const { pid } = daemonAt(t, mnt);
  t.is((await imagefs(['umount', mnt])).code, 0);
  const { code, stdout, stderr } = await running;
  t.deepEqual([code, stderr], [0, '']);
  t.is(stdout, `Mounted "${image}" at "${mnt}". Press Ctrl-C or run imagefs umount ${mnt} to stop\n`);
  t.false(isAlive(pid));
});

test('--debug stays in the foreground and prints what happens', async (t) => {
  const dir = workspace(t);
  const image = await createImage(t, path.join(dir, 'vm.qed'), '1M');
  const mnt = directory(dir);
  const running = imagefs(['mount', '-d', image, mnt]);
  await until(t, 'the mount', () => isMounted(mnt));
  t.is((await imagefs(['umount', mnt])).code, 0);
  const { code, stderr } = await running;
  t.is(code, 0);
  t.regex(stderr, /imagefs:daemon/);
});

test('imagefs list shows where, what, how and by whom', async (t) => {
  const dir = workspace(t);
  const image = await createImage(t, path.join(dir, 'vm.qed'), '1M');
  const mnt = directory(dir);
  const { pid } = await mount(t, ['-r', image, mnt]);
  const json = await imagefs(['list', '--output', 'json']);
  t.is(json.code, 0, json.stderr);
  const listed = (JSON.parse(json.stdout) as { mountpoint: string }[]).find(({ mountpoint }) => mountpoint === mnt);
  t.deepEqual(listed, {
    mountpoint: mnt,
    images: [image],
    'read-only': true,
    session: 'kernel',
    pid,
    state: 'live',
  } as object);
  const human = await imagefs(['list']);
  t.regex(human.stdout, /^MOUNTPOINT +MODE +SESSION +PID +STATE +IMAGES\n/);
  t.true(human.stdout.includes(mnt));
});

test('-o growable, threads and cache-size are obeyed', async (t) => {
  const dir = workspace(t);
  const image = await createImage(t, path.join(dir, 'vm.qed'), '1M');
  const mnt = directory(dir);
  const { pid } = await mount(t, ['-o', 'growable,threads=7,cache_size=2M', image, mnt]);
  fs.truncateSync(path.join(mnt, 'disk'), 2 * 1024 * 1024);
  t.is(fs.statSync(path.join(mnt, 'disk')).size, 2 * 1024 * 1024);
  // 7 workers, the flusher and the main thread, beside those of Node itself.
  t.true(fs.readdirSync(`/proc/${pid}/task`).length >= 9);
});

test('--log receives the daemon’s messages', async (t) => {
  const dir = workspace(t);
  const image = await createImage(t, path.join(dir, 'vm.qed'), '1M');
  const mnt = directory(dir);
  const log = path.join(dir, 'log');
  const { pid } = await mount(t, ['--log', log, image, mnt]);
  process.kill(pid, 'SIGTERM');
  await until(t, 'the end of the daemon', () => !isAlive(pid));
  t.regex(fs.readFileSync(log, 'utf8'), /Got SIGTERM: unmounting/);
});
