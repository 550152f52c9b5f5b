import fs from 'node:fs';
import path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { createImage, directory, imagefs, isMounted, isRoot, mount, required, run, workspace } from './cli';

interface Place {
  dir: string;
  image: string;
  mnt: string;
}

async function place(t: ExecutionContext): Promise<Place> {
  const dir = workspace(t);
  return { dir, image: await createImage(t, path.join(dir, 'vm.qed'), '1M'), mnt: directory(dir) };
}

/** One line on standard error, an exit code, nothing mounted, the image as it was. */
async function refused(t: ExecutionContext, { image, mnt }: Place, args: string[], message: RegExp): Promise<void> {
  const before = fs.existsSync(image) ? fs.readFileSync(image) : undefined;
  const { code, stdout, stderr } = await imagefs(['mount', ...args]);
  t.is(code, 1);
  t.is(stdout, '');
  t.regex(stderr, message);
  t.regex(stderr, /^imagefs: [^\n]+\n$/, 'one line');
  t.false(isMounted(mnt));
  if (before !== undefined) t.true(before.equals(fs.readFileSync(image)), 'the image is as it was');
}

test('mountpoint missing', async (t) => {
  const where = await place(t);
  await refused(t, where, [where.image, `${where.mnt}/no`], /Cannot mount at ".*\/no": no such directory; create it/);
});

test('mountpoint is a file', async (t) => {
  const where = await place(t);
  const file = path.join(where.dir, 'file');
  fs.writeFileSync(file, '');
  await refused(t, where, [where.image, file], /Cannot mount at ".*file": it is not a directory/);
});

test('mountpoint is not empty', async (t) => {
  const where = await place(t);
  fs.writeFileSync(path.join(where.mnt, 'mine'), '');
  await refused(t, where, [where.image, where.mnt], /the directory is not empty \(it holds "mine"\)/);
});

test('mountpoint is the image', async (t) => {
  const where = await place(t);
  await refused(t, where, [where.image, where.image], /not a directory/);
});

test('image inside the mountpoint, also through a symbolic link', async (t) => {
  const where = await place(t);
  const link = path.join(where.dir, 'link');
  fs.symlinkSync(where.mnt, link);
  const inside = path.join(where.mnt, 'inside.qed');
  fs.renameSync(where.image, inside);
  await refused(t, where, [inside, where.mnt], /the image lies inside the mountpoint/);
  await refused(t, where, [path.join(link, 'inside.qed'), where.mnt], /the image lies inside the mountpoint/);
  await refused(t, where, [inside, link], /the image lies inside the mountpoint/);
});

test('mountpoint inside a directory of images, or the same', async (t) => {
  const where = await place(t);
  await refused(t, where, [where.dir, where.mnt], /the mountpoint lies inside that directory/);
  await refused(t, where, [where.dir, where.dir], /image and mountpoint are the same/);
});

test('mountpoint is a mount of ours already', async (t) => {
  const where = await place(t);
  const { pid } = await mount(t, [where.image, where.mnt]);
  const { code, stderr } = await imagefs(['mount', where.image, where.mnt]);
  t.is(code, 1);
  t.regex(stderr, new RegExp(`^imagefs: Cannot mount at ".*": it is already a mount of imagefs \\(pid ${pid}\\).*\n$`));
});

test('image missing', async (t) => {
  const where = await place(t);
  await refused(t, where, [`${where.dir}/no.qed`, where.mnt], /Cannot open ".*no\.qed": No such file or directory/);
});

test('directory without images', async (t) => {
  const where = await place(t);
  await refused(t, where, [directory(where.dir, 'empty'), where.mnt], /there is no image in it/);
});

test('image is a device that is no disk', async (t) => {
  const where = await place(t);
  await refused(
    t,
    where,
    ['/dev/null', where.mnt],
    /Cannot open "\/dev\/null": it is neither a regular file nor a block device/,
  );
});

test('wrong format, corrupt header, truncated header', async (t) => {
  const where = await place(t);
  const raw = path.join(where.dir, 'disk.raw');
  fs.writeFileSync(raw, Buffer.alloc(65536));
  await refused(t, where, ['--format', 'qed', raw, where.mnt], /disk\.raw/);
  await refused(t, where, ['--format', 'qcow9', raw, where.mnt], /qcow9/);
  const bytes = fs.readFileSync(where.image);
  bytes.writeUInt32LE(0x3000, 4);
  const corrupt = path.join(where.dir, 'corrupt.qed');
  fs.writeFileSync(corrupt, bytes);
  await refused(t, where, [corrupt, where.mnt], /corrupt\.qed.*0x3000/);
  const short = path.join(where.dir, 'short.qed');
  fs.writeFileSync(short, bytes.subarray(0, 40));
  await refused(t, where, [short, where.mnt], /short\.qed/);
});

test('backing file missing, and a chain that loops', async (t) => {
  const where = await place(t);
  const overlay = await createImage(t, path.join(where.dir, 'top.qed'), undefined, ['-b', 'vm.qed', '-F', 'qed']);
  fs.renameSync(where.image, path.join(where.dir, 'gone.qed'));
  await refused(t, where, [overlay, where.mnt], /vm\.qed.*No such file or directory/);
  // The name of its backing file, vm.qed, is now its own.
  fs.copyFileSync(overlay, where.image);
  await refused(t, where, [where.image, where.mnt], /vm\.qed/);
});

test('an option that does not exist: usage, exit code 2', async (t) => {
  const where = await place(t);
  for (const option of ['--nonsense', '-ononsense', '-othreads=0', '--force-share']) {
    const { code, stderr } = await imagefs(['mount', option, where.image, where.mnt]);
    t.is(code, 2, option);
    t.regex(stderr, /^imagefs: [^\n]+\n$/);
  }
  t.is((await imagefs(['mount', where.image])).code, 2);
  t.is((await imagefs(['umount'])).code, 2);
  t.is((await imagefs(['list', '--output', 'xml'])).code, 2);
});

test('a log file that cannot be written', async (t) => {
  const where = await place(t);
  const log = path.join(where.dir, 'no/log');
  await refused(t, where, ['--log', log, where.image, where.mnt], /Cannot open the log file ".*no\/log": No such file/);
});

test('no /dev/fuse', async (t) => {
  if (!required(t, isRoot(), 'needs root for a namespace without /dev/fuse')) return;
  const where = await place(t);
  const dev = directory(where.dir, 'dev');
  const script = [
    `mount -t tmpfs none ${dev}`,
    `mknod ${dev}/null c 1 3 && mknod ${dev}/urandom c 1 9`,
    `mount --bind ${dev} /dev`,
    'exec "$@"',
  ].join(' && ');
  const command = [process.execPath, path.resolve(__dirname, '../../../bin/imagefs'), 'mount', where.image, where.mnt];
  const { code, stderr } = await run('unshare', [
    '-m',
    '--propagation',
    'private',
    'sh',
    '-c',
    script,
    'sh',
    ...command,
  ]);
  t.is(code, 1);
  t.regex(stderr, /^imagefs: Cannot mount at ".*": there is no \/dev\/fuse; load the kernel module [^\n]*\n$/);
});

test('umount: nothing mounted, not ours, a directory that does not exist', async (t) => {
  const where = await place(t);
  for (const [at, message] of [
    [where.mnt, /nothing is mounted there/],
    [`${where.mnt}/no`, /nothing is mounted there/],
    ['/proc', /it is a proc mount, not one of imagefs/],
  ] as const) {
    const { code, stderr } = await imagefs(['umount', at]);
    t.is(code, 1);
    t.regex(stderr, message);
    t.regex(stderr, /^imagefs: [^\n]+\n$/);
  }
});
