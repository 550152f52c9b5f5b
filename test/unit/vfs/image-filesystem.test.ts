import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import type { BlockNode } from '../../../src/block/node';
import type { FileSystem } from '../../../src/vfs/filesystem';
import { createFileSystem } from '../../../src/vfs/image-filesystem';
import { buildTree } from '../../../src/vfs/tree';
import { MemoryNode, pattern } from './memory-node';
import {
  ALL_FILES,
  CLUSTER,
  codeOf,
  MOUNTED_MS,
  MTIME_MS,
  mount,
  OPTIONS,
  READ,
  readDisk,
  WRITE,
  walk,
} from './mount-fixture';

function listAll(fileSystem: FileSystem, ino = fileSystem.rootIno, prefix = ''): string[] {
  return fileSystem
    .list(ino)
    .flatMap(({ name, ino: inside, kind }) =>
      kind === 'directory' ? listAll(fileSystem, inside, `${prefix}${name}/`) : [`${prefix}${name}`],
    );
}

test('FileSystem.list() and lookup() agree on every file', (t) => {
  const { fileSystem } = mount();
  t.deepEqual(listAll(fileSystem), ALL_FILES);
  for (const name of ALL_FILES) {
    const ino = walk(fileSystem, name);
    t.is(fileSystem.attributes(ino).ino, ino, name);
    t.is(fileSystem.attributes(ino).kind, 'file', name);
  }
  const inos = ALL_FILES.map((name) => walk(fileSystem, name));
  t.is(new Set(inos).size, ALL_FILES.length);
  t.is(walk(fileSystem, ''), 1);
});

test('FileSystem.list() hands out what the caller may change', (t) => {
  const { fileSystem } = mount();
  fileSystem.list(fileSystem.rootIno).length = 0;
  t.is(fileSystem.list(fileSystem.rootIno).length, 2);
});

test('FileSystem.attributes() of folders', (t) => {
  const { fileSystem } = mount();
  const root = fileSystem.attributes(fileSystem.rootIno);
  const times = { atimeMs: MOUNTED_MS, mtimeMs: MOUNTED_MS, ctimeMs: MOUNTED_MS };
  const expected = {
    ino: 1,
    kind: 'directory',
    mode: 0o755,
    uid: 7,
    gid: 8,
    nlink: 4,
    size: 0,
    blocks: 0,
    blksize: 4096,
  };
  t.deepEqual(root as unknown, { ...expected, ...times });
  t.is(fileSystem.attributes(walk(fileSystem, 'vm.img')).nlink, 3);
  t.is(fileSystem.attributes(walk(fileSystem, 'broken')).nlink, 2);
});

test('FileSystem refuses what the kind of file does not have', (t) => {
  const { fileSystem } = mount();
  const { rootIno } = fileSystem;
  const disk = walk(fileSystem, 'vm.img/disk');
  const buffer = new Uint8Array(8);
  const cases: [expected: string, run: () => unknown][] = [
    ['ENOENT', () => fileSystem.lookup(rootIno, 'nothing')],
    ['ENOENT', () => fileSystem.lookup(rootIno, '')],
    ['ENOENT', () => fileSystem.lookup(rootIno, 'n'.repeat(255))],
    ['ENAMETOOLONG', () => fileSystem.lookup(rootIno, 'n'.repeat(256))],
    ['ENAMETOOLONG', () => fileSystem.lookup(rootIno, 'é'.repeat(128))],
    ['ENOENT', () => fileSystem.lookup(rootIno, '__proto__')],
    ['ENOENT', () => fileSystem.lookup(rootIno, 'constructor')],
    ['ENOENT', () => fileSystem.lookup(999, 'disk')],
    ['ENOTDIR', () => fileSystem.lookup(disk, 'x')],
    ['ENOTDIR', () => fileSystem.list(disk)],
    ['ENOENT', () => fileSystem.list(0)],
    ['ENOENT', () => fileSystem.attributes(0)],
    ['ENOENT', () => fileSystem.attributes(999)],
    ['ENOENT', () => fileSystem.attributes(-1)],
    ['ENOENT', () => fileSystem.attributes(1.5)],
    ['EISDIR', () => fileSystem.open(rootIno, READ)],
    ['EISDIR', () => fileSystem.open(rootIno, WRITE)],
    ['EISDIR', () => fileSystem.read(rootIno, 0, 0, buffer, 0, 8)],
    ['EISDIR', () => fileSystem.write(rootIno, 0, 0, buffer, 0, 8, false)],
    ['EISDIR', () => fileSystem.setSize(rootIno, 0)],
    ['EISDIR', () => fileSystem.fallocate(rootIno, 0, 'allocate', false, 0, 1)],
    ['EISDIR', () => fileSystem.seek(rootIno, 0, 0, 'data')],
    ['EISDIR', () => fileSystem.fsync(rootIno, 0)],
    ['ENOENT', () => fileSystem.open(999, READ)],
    ['ENOENT', () => fileSystem.read(999, 0, 0, buffer, 0, 8)],
  ];
  for (const [index, [expected, run]] of cases.entries()) t.is(codeOf(run), expected, `case ${index}`);
  t.is(cases.length, 25);
  t.notThrows(() => fileSystem.release(999, 5));
  t.notThrows(() => fileSystem.release(rootIno, 5));
});

test('FileSystem opens only the live disk for writing', (t) => {
  const { fileSystem } = mount();
  const codes = ALL_FILES.map((name) => codeOf(() => fileSystem.open(walk(fileSystem, name), WRITE)));
  t.deepEqual(
    codes,
    ALL_FILES.map((name) => (name === 'vm.img/disk' ? 'nothing thrown' : 'EROFS')),
  );
  const sizes = ALL_FILES.map((name) => codeOf(() => fileSystem.setSize(walk(fileSystem, name), 0)));
  t.deepEqual(sizes, codes);
  const holes = ALL_FILES.map((name) =>
    codeOf(() => fileSystem.fallocate(walk(fileSystem, name), 0, 'punch-hole', true, 0, 512)),
  );
  t.deepEqual(holes, codes);
});

test('FileSystem of a read-only mount opens nothing for writing', (t) => {
  for (const growable of [false, true]) {
    const { fileSystem, top } = mount({ readOnly: true, growable });
    const before = top.calls.length;
    for (const name of ALL_FILES)
      t.is(
        codeOf(() => fileSystem.open(walk(fileSystem, name), WRITE)),
        'EROFS',
        name,
      );
    const disk = walk(fileSystem, 'vm.img/disk');
    t.is(
      codeOf(() => fileSystem.write(disk, 0, 0, new Uint8Array(8), 0, 8, false)),
      'EROFS',
    );
    t.is(
      codeOf(() => fileSystem.setSize(disk, 8 * CLUSTER)),
      'EROFS',
    );
    t.is(top.calls.length, before);
  }
});

test('FileSystem shows the live disk and each layer as that layer holds it', (t) => {
  const { fileSystem, top, base } = mount();
  const shadow = new Uint8Array(4 * CLUSTER);
  shadow.set(pattern(CLUSTER, 1), 0);
  shadow.set(pattern(CLUSTER, 2), 2 * CLUSTER);
  t.deepEqual(readDisk(fileSystem, 'vm.img/layers/1-base.img/disk'), shadow);
  shadow.set(pattern(CLUSTER, 3), CLUSTER);
  t.deepEqual(readDisk(fileSystem, 'vm.img/disk'), shadow);
  t.deepEqual(readDisk(fileSystem, 'vm.img/layers/0-vm.img/disk'), shadow);

  const disk = walk(fileSystem, 'vm.img/disk');
  t.is(fileSystem.write(disk, 0, 100, pattern(5000, 4), 0, 5000, true), 5000);
  shadow.set(pattern(5000, 4), 100);
  t.deepEqual(readDisk(fileSystem, 'vm.img/disk'), shadow);
  t.deepEqual(readDisk(fileSystem, 'vm.img/layers/0-vm.img/disk'), shadow);
  t.is(top.calls.at(-1), 'flush');
  t.is(base.calls.length, 2, 'the backing file was not touched');

  const below = fileSystem.attributes(walk(fileSystem, 'vm.img/layers/1-base.img/disk'));
  t.is(below.blocks, (2 * CLUSTER) / 512);
  t.is(below.mtimeMs > MTIME_MS, true, 'one clock an image');
});

test('FileSystem lets a growable disk grow, but not its layers', (t) => {
  const { fileSystem } = mount({ growable: true });
  const disk = walk(fileSystem, 'vm.img/disk');
  fileSystem.setSize(disk, 5 * CLUSTER);
  t.is(fileSystem.attributes(disk).size, 5 * CLUSTER);
  t.is(fileSystem.write(disk, 0, 5 * CLUSTER, pattern(1, 0), 0, 1, false), 1);
  t.is(fileSystem.attributes(disk).size, 5 * CLUSTER + 512);
  t.is(
    codeOf(() => fileSystem.setSize(walk(fileSystem, 'vm.img/layers/0-vm.img/disk'), 9 * CLUSTER)),
    'EROFS',
  );
});

test('A change that one thread makes shows in the times that another tells', (t) => {
  const { fileSystem, another } = mount();
  const other = another();
  const disk = walk(fileSystem, 'vm.img/disk');
  t.is(other.attributes(disk).mtimeMs, MTIME_MS);
  fileSystem.write(disk, 0, 0, pattern(1, 0), 0, 1, false);
  t.is(other.attributes(disk).mtimeMs, fileSystem.attributes(disk).mtimeMs);
  t.true(other.attributes(disk).mtimeMs > MTIME_MS);
});

function temporaryDirectory(t: ExecutionContext): string {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'imagefs-'));
  t.teardown(() => fs.rmSync(directory, { recursive: true, force: true }));
  return directory;
}

test('FileSystem.statistics() tells of the host file system that holds the image', (t) => {
  const directory = temporaryDirectory(t);
  const host = fs.statfsSync(directory);
  const found = mount({}, directory).fileSystem.statistics();
  t.is(found.blockSize, host.bsize);
  t.is(found.blocks, host.blocks);
  t.true(found.blocksFree > 0 && found.blocksFree <= found.blocks);
  t.is(found.files, 17, 'six folders beside the eleven files');
});

test('FileSystem.statistics() answers when there is nothing to ask', (t) => {
  const none = { blockSize: 4096, blocks: 0, blocksFree: 0 };
  t.deepEqual(mount({}, '/nowhere/at/all').fileSystem.statistics(), { ...none, files: 17 });
  const empty = createFileSystem(buildTree([], { singleImage: false, mountedMs: 0 }), [], OPTIONS);
  t.deepEqual(empty.statistics(), { ...none, files: 1 });
});

test('createFileSystem() refuses nodes that do not belong to the plan', (t) => {
  const layers = ['/a', '/b'].map((name) => ({ path: name, format: 'raw', readOnly: false, mode: 0o600, mtimeMs: 0 }));
  const plan = buildTree([{ name: 'a', layers }], { singleImage: true, mountedMs: 0 });
  const lonely: BlockNode = new MemoryNode({ size: CLUSTER });
  for (const nodes of [[], [undefined], [lonely]]) {
    t.throws(() => createFileSystem(plan, nodes, OPTIONS), { name: 'AssertionError' });
  }
});
