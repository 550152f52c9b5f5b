/** Space: punching, zeroing, preallocating, finding holes, and what stat and df say of it. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { type FallocateHow, fallocate } from '../../src/system/fallocate';
import { seekData, seekHole } from '../../src/system/lseek';
import { MIB } from '../../src/units';
import { workspace } from '../mount/cli';
import {
  CLUSTER,
  createImage,
  DISK_SIZE,
  mount,
  noise,
  onBothSessions,
  overlayImage,
  program,
  sameBytes,
  standAloneImage,
  succeed,
  verifyImage,
} from './disk-mount';

const BLOCKS_OF_CLUSTER = CLUSTER / 512;

test.serial('fallocate punches, zeroes and allocates any range of an overlay (kernel session)', async (t) => {
  const directory = workspace(t);
  const { image, shadow } = overlayImage(directory);
  const { disk, unmount } = await mount(t, 'kernel', [image]);
  const fd = fs.openSync(disk, 'r+');
  const steps: [how: FallocateHow, offset: number, length: number][] = [
    ['punch-hole', 0, CLUSTER],
    ['punch-hole', 3 * CLUSTER + 1, 1],
    ['punch-hole', 4 * CLUSTER - 700, 1400],
    ['punch-hole', 6 * CLUSTER + 511, 3 * CLUSTER],
    ['punch-hole', 5 * MIB, 2 * MIB],
    ['punch-hole', DISK_SIZE - 1, 1],
    ['punch-hole', DISK_SIZE - 10, 4096],
    ['punch-hole', DISK_SIZE, 4096],
    ['zero-range', 20 * CLUSTER, 2 * CLUSTER],
    ['zero-range', 23 * CLUSTER + 100, 100],
    ['zero-range', DISK_SIZE - 1000, 1000],
    ['allocate', 30 * CLUSTER, 2 * CLUSTER],
    ['allocate', 40 * CLUSTER + 7, 1],
    ['allocate', DISK_SIZE - 1, 1],
    ['allocate-keep-size', DISK_SIZE - 1, 4096],
    ['allocate-keep-size', DISK_SIZE + 4096, 4096],
  ];
  for (const [index, [how, offset, length]] of steps.entries()) {
    // Something of the overlay's own lies there, beside what the backing file holds.
    const content = noise(1000, 60 + index);
    const at = Math.min(offset, DISK_SIZE - 1000);
    fs.writeSync(fd, content, 0, 1000, at);
    content.copy(shadow, at);
    fallocate(fd, how, offset, length);
    if (!how.startsWith('allocate')) shadow.fill(0, offset, Math.min(offset + length, DISK_SIZE));
    sameBytes(t, fs.readFileSync(disk), shadow, `${how} ${length} at ${offset}`);
  }
  t.is(steps.length, 16);
  for (const how of ['allocate', 'zero-range'] as const) {
    t.throws(() => fallocate(fd, how, DISK_SIZE - 1, 2), { code: 'ENOSPC' }, `${how} across the end`);
    t.throws(() => fallocate(fd, how, DISK_SIZE, 512), { code: 'ENOSPC' }, `${how} past the end`);
  }
  fs.closeSync(fd);
  t.is(fs.statSync(disk).size, DISK_SIZE);
  await unmount();
  await verifyImage(t, directory, image, shadow, { freed: true });
});

test.serial(
  'fallocate past the end lets a growable disk grow, unless the size is to be kept (kernel session)',
  async (t) => {
    const directory = workspace(t);
    const image = standAloneImage(directory, MIB);
    const { disk, unmount } = await mount(t, 'kernel', ['--growable', image]);
    const fd = fs.openSync(disk, 'r+');
    const steps: [how: FallocateHow, offset: number, length: number, size: number][] = [
      ['allocate-keep-size', MIB, 4096, MIB],
      ['punch-hole', MIB, 4096, MIB],
      ['allocate', MIB, 4096, MIB + 4096],
      ['zero-range', 2 * MIB, 1, 2 * MIB + 512],
    ];
    for (const [how, offset, length, size] of steps) {
      fallocate(fd, how, offset, length);
      t.is(fs.fstatSync(fd).size, size, how);
    }
    fs.closeSync(fd);
    sameBytes(t, fs.readFileSync(disk), Buffer.alloc(2 * MIB + 512), 'nothing but zeroes');
    await unmount();
    await verifyImage(t, directory, image, Buffer.alloc(2 * MIB + 512));
  },
);

test.serial(
  'st_blocks grows with what is written and falls with what is punched, on the host too (kernel session)',
  async (t) => {
    const directory = workspace(t);
    const image = standAloneImage(directory);
    const { disk } = await mount(t, 'kernel', [image]);
    const fd = fs.openSync(disk, 'r+');
    const blocks = () => fs.fstatSync(fd).blocks;
    const onHost = () => fs.statSync(image).blocks;
    const empty = blocks();
    t.true(empty < 16 * BLOCKS_OF_CLUSTER, `an empty image takes ${empty} blocks`);
    t.is(fs.fstatSync(fd).blksize, CLUSTER);

    fs.writeSync(fd, noise(32 * CLUSTER, 70), 0, 32 * CLUSTER, 0);
    fs.fsyncSync(fd);
    const full = blocks();
    t.true(full >= empty + 32 * BLOCKS_OF_CLUSTER, `${full} blocks after writing`);
    t.is(full, onHost());

    await succeed(t, 'fallocate', ['-p', '-o', '0', '-l', String(24 * CLUSTER), disk]);
    fs.fsyncSync(fd);
    t.true(blocks() <= full - 24 * BLOCKS_OF_CLUSTER, `${blocks()} blocks after punching`);
    t.is(blocks(), onHost());

    // What was freed is used again: the image file does not grow.
    const length = fs.statSync(image).size;
    fs.writeSync(fd, noise(16 * CLUSTER, 71), 0, 16 * CLUSTER, 0);
    fs.fsyncSync(fd);
    t.is(fs.statSync(image).size, length);
    fs.closeSync(fd);
  },
);

onBothSessions('st_blocks and du tell of the image file of each layer', async (t, session) => {
  const directory = workspace(t);
  const { image, base } = overlayImage(directory);
  const { mountpoint, disk } = await mount(t, session, [image]);
  fs.writeFileSync(disk, noise(10 * CLUSTER, 72), { flag: 'r+', flush: true });
  t.is(fs.statSync(disk).size, DISK_SIZE);
  t.is(fs.statSync(disk).blocks, fs.statSync(image).blocks);
  t.is(fs.statSync(path.join(mountpoint, 'layers', '1-base.img', 'disk')).blocks, fs.statSync(base).blocks);
  const du = await succeed(t, 'du', ['-B1', disk]);
  t.is(Number.parseInt(du.stdout, 10), fs.statSync(image).blocks * 512);
});

/** Where data and holes begin, as lseek(2) tells. */
function runs(fd: number, size: number): string[] {
  const found: string[] = [];
  for (let offset = 0; offset < size; ) {
    const data = seekData(fd, offset);
    if (data === undefined) return [...found, `hole ${offset}-${size}`];
    if (data > offset) found.push(`hole ${offset}-${data}`);
    const hole = seekHole(fd, data) ?? size;
    found.push(`data ${data}-${hole}`);
    offset = hole;
  }
  return found;
}

test.serial('SEEK_DATA and SEEK_HOLE see the whole chain (kernel session)', async (t) => {
  const directory = workspace(t);
  // Clusters that the overlay has (D data, Z zeroes), those of the backing file, and what shows:
  //   overlay  . D . Z . . D .
  //   backing  D . . D D . . .
  //   shows    D D . . D . D .
  const base = path.join(directory, 'base.qed');
  const image = path.join(directory, 'vm.qed');
  const size = 8 * CLUSTER + 512;
  createImage('-f', 'qed', base, String(size));
  const below = await mount(t, 'kernel', [base]);
  const write = (disk: string, clusters: number[]): void => {
    const fd = fs.openSync(disk, 'r+');
    for (const cluster of clusters) fs.writeSync(fd, noise(CLUSTER, 80 + cluster), 0, CLUSTER, cluster * CLUSTER);
    fs.closeSync(fd);
  };
  write(below.disk, [0, 3, 4]);
  await below.unmount();

  createImage('-f', 'qed', '-b', base, '-F', 'qed', image);
  const { disk, mountpoint } = await mount(t, 'kernel', [image]);
  write(disk, [1, 6]);
  const fd = fs.openSync(disk, 'r+');
  fallocate(fd, 'punch-hole', 3 * CLUSTER, CLUSTER);
  const c = (cluster: number): number => cluster * CLUSTER;
  t.deepEqual(runs(fd, size), [
    `data 0-${c(2)}`,
    `hole ${c(2)}-${c(4)}`,
    `data ${c(4)}-${c(5)}`,
    `hole ${c(5)}-${c(6)}`,
    `data ${c(6)}-${c(7)}`,
    `hole ${c(7)}-${size}`,
  ]);

  const seeks: [offset: number, data: number | undefined, hole: number | undefined][] = [
    [0, 0, c(2)],
    [c(2) - 1, c(2) - 1, c(2)],
    [c(2), c(4), c(2)],
    [c(4) - 1, c(4), c(4) - 1],
    [c(4), c(4), c(5)],
    [c(7) - 1, c(7) - 1, c(7)],
    [c(7), undefined, c(7)],
    [size - 1, undefined, size - 1],
    [size, undefined, undefined],
    [size + 1, undefined, undefined],
  ];
  for (const [offset, data, hole] of seeks) {
    t.is(seekData(fd, offset), data, `data from ${offset}`);
    t.is(seekHole(fd, offset), hole, `hole from ${offset}`);
  }
  fs.closeSync(fd);

  const layer = fs.openSync(path.join(mountpoint, 'layers', '1-base.qed', 'disk'), 'r');
  t.deepEqual(runs(layer, size), [
    `data 0-${c(1)}`,
    `hole ${c(1)}-${c(3)}`,
    `data ${c(3)}-${c(5)}`,
    `hole ${c(5)}-${size}`,
  ]);
  fs.closeSync(layer);
});

async function copyOf(
  t: ExecutionContext,
  directory: string,
  disk: string,
  how: string,
): Promise<fs.Stats & { bytes: Buffer }> {
  const copy = path.join(directory, `copy-${how}`);
  await succeed(t, 'cp', [`--sparse=${how}`, disk, copy]);
  return Object.assign(fs.statSync(copy), { bytes: fs.readFileSync(copy) });
}

onBothSessions('cp --sparse copies a disk with its holes', async (t, session) => {
  const directory = workspace(t);
  const image = standAloneImage(directory);
  const { disk } = await mount(t, session, [image]);
  const shadow = Buffer.alloc(DISK_SIZE);
  noise(3 * CLUSTER, 90).copy(shadow, 40 * CLUSTER + 100);
  const fd = fs.openSync(disk, 'r+');
  fs.writeSync(fd, shadow, 40 * CLUSTER + 100, 3 * CLUSTER, 40 * CLUSTER + 100);
  fs.closeSync(fd);
  for (const how of ['auto', 'always', 'never']) {
    const { bytes, blocks } = await copyOf(t, directory, disk, how);
    sameBytes(t, bytes, shadow, how);
    // Only the kernel session can say where the holes are; without that, `auto` has nothing to go by but st_blocks.
    if (how === 'always' || (how === 'auto' && session === 'kernel')) {
      t.true(blocks < 16 * BLOCKS_OF_CLUSTER, `--sparse=${how}: ${blocks} blocks`);
    }
  }
});

test.serial('the native session says which operations it cannot carry', async (t) => {
  const directory = workspace(t);
  const { disk } = await mount(t, 'native', [standAloneImage(directory, MIB)]);
  const fd = fs.openSync(disk, 'r+');
  for (const how of ['punch-hole', 'zero-range', 'allocate'] as const) {
    t.throws(() => fallocate(fd, how, 0, 4096), { code: 'EOPNOTSUPP' }, how);
  }
  t.is(seekData(fd, 4096), 4096, 'all is data');
  t.is(seekHole(fd, 4096), MIB, 'the only hole is the end');
  fs.closeSync(fd);
});

onBothSessions('df tells of the host file system that holds the image', async (t, session) => {
  const directory = workspace(t);
  const { mountpoint } = await mount(t, session, [standAloneImage(directory, MIB)]);
  const [host, found] = [fs.statfsSync(directory), fs.statfsSync(mountpoint)];
  // Sizes, not blocks: a session may count in larger blocks. Others write to the host file system meanwhile.
  t.is(found.blocks * found.bsize, host.blocks * host.bsize);
  t.true(found.bavail > 0 && found.bavail <= found.blocks);
  t.true(Math.abs(found.bavail * found.bsize - host.bavail * host.bsize) < 0.2 * host.blocks * host.bsize);
  t.is((await program('df', [mountpoint])).code, 0);
});
