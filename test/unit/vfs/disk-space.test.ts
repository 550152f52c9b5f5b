import test from 'ava';
import type { FallocateMode } from '../../../src/vfs/filesystem';
import { contentOf, type Made, make, outcome, SIZE } from './disk-fixture';
import { MemoryNode, pattern } from './memory-node';

/** What a fixed disk and a growable one do: the calls to the node, or the error. */
const FALLOCATES: [
  mode: FallocateMode,
  keepSize: boolean,
  offset: number,
  length: number,
  fixed: string,
  growing: string,
][] = [
  ['allocate', false, 0, SIZE, 'allocate 0 16384', 'allocate 0 16384'],
  ['allocate', false, 5, 10, 'allocate 5 10', 'allocate 5 10'],
  ['allocate', false, SIZE - 1, 2, 'ENOSPC', 'resize 16896, allocate 16383 2'],
  ['allocate', false, SIZE, 1, 'ENOSPC', 'resize 16896, allocate 16384 1'],
  ['allocate', true, SIZE - 1, 2, 'allocate 16383 1', 'allocate 16383 1'],
  ['allocate', true, SIZE, 1, '', ''],
  ['allocate', true, SIZE + 512, 512, '', ''],
  ['punch-hole', true, 0, SIZE, 'writeZeroes 0 16384', 'writeZeroes 0 16384'],
  ['punch-hole', true, 511, 4097, 'writeZeroes 511 4097', 'writeZeroes 511 4097'],
  ['punch-hole', true, SIZE - 1, 2, 'writeZeroes 16383 1', 'writeZeroes 16383 1'],
  ['punch-hole', true, SIZE, 1, '', ''],
  ['punch-hole', true, 0, 2 ** 52, 'writeZeroes 0 16384', 'writeZeroes 0 16384'],
  ['zero-range', true, SIZE - 1, 2, 'writeZeroes 16383 1', 'writeZeroes 16383 1'],
  ['zero-range', true, SIZE, 1, '', ''],
  ['zero-range', false, 0, SIZE, 'writeZeroes 0 16384', 'writeZeroes 0 16384'],
  ['zero-range', false, SIZE - 1, 2, 'ENOSPC', 'resize 16896, writeZeroes 16383 2'],
  ['zero-range', false, SIZE, 512, 'ENOSPC', 'resize 16896, writeZeroes 16384 512'],
  ['allocate', false, 0, 0, 'EINVAL', 'EINVAL'],
  ['punch-hole', true, -1, 5, 'EINVAL', 'EINVAL'],
  ['zero-range', true, 5, -1, 'EINVAL', 'EINVAL'],
];

test('DiskFile.fallocate() clamps to the disk, grows what may grow, and refuses the rest', (t) => {
  for (const [mode, keepSize, offset, length, ...expected] of FALLOCATES) {
    for (const [index, growable] of [false, true].entries()) {
      const { node, file } = make({ growable });
      const failed = outcome(() => file.fallocate(0, mode, keepSize, offset, length));
      t.is(
        failed ?? node.calls.join(', '),
        expected[index] ?? '',
        `${mode} ${length} at ${offset}, keepSize ${keepSize}, growable ${growable}`,
      );
      if (failed !== undefined) t.deepEqual(node.calls, []);
    }
  }
  t.is(FALLOCATES.length, 20);
});

test('DiskFile.fallocate() makes ranges read zero over a backing file, and nothing beside them', (t) => {
  const backing = new MemoryNode({ size: SIZE });
  const content = pattern(SIZE, 5);
  backing.write(0, content, 0, SIZE);
  const { node, file } = make({ backing });
  file.fallocate(0, 'punch-hole', true, 1000, 5000);
  const shadow = Uint8Array.from(content).fill(0, 1000, 6000);
  t.deepEqual(contentOf(node), shadow);
  file.fallocate(0, 'zero-range', true, 8191, 4098);
  shadow.fill(0, 8191, 12_289);
  t.deepEqual(contentOf(node), shadow);
  file.fallocate(0, 'allocate', false, 0, SIZE);
  t.deepEqual(contentOf(node), shadow, 'allocate keeps the content');
});

/**
 * Clusters of 4 KiB, the overlay above the backing file, which ends inside the sixth cluster:
 *
 *   overlay  .  D  .  Z  .  .  .  D        D data, Z zero cluster, . unallocated
 *   backing  .  .  D  D  Z  D|
 *   shows    h  D  D  h  h  D  h  D
 */
function chainOfTwo(): Made {
  const cluster = 4096;
  const backing = new MemoryNode({ size: 5 * cluster + 1024 });
  backing.write(2 * cluster, pattern(cluster, 1), 0, cluster);
  backing.write(3 * cluster, pattern(cluster, 2), 0, cluster);
  backing.writeZeroes(4 * cluster, cluster);
  backing.write(5 * cluster, pattern(1024, 3), 0, 1024);
  const made = make({ size: 8 * cluster, backing });
  made.node.write(cluster, pattern(cluster, 4), 0, cluster);
  made.node.writeZeroes(3 * cluster, cluster);
  made.node.write(7 * cluster, pattern(cluster, 5), 0, cluster);
  return made;
}

const END = 8 * 4096;
const BACKING_END = 5 * 4096 + 1024;
const SEEKS: [offset: number, data: number | string, hole: number | string][] = [
  [-1, 'ENXIO', 'ENXIO'],
  [0, 4096, 0],
  [4095, 4096, 4095],
  [4096, 4096, 12_288],
  [4097, 4097, 12_288],
  [8191, 8191, 12_288],
  [8192, 8192, 12_288],
  [12_287, 12_287, 12_288],
  [12_288, 20_480, 12_288],
  [16_383, 20_480, 16_383],
  [16_384, 20_480, 16_384],
  [20_479, 20_480, 20_479],
  [20_480, 20_480, BACKING_END],
  [BACKING_END - 1, BACKING_END - 1, BACKING_END],
  [BACKING_END, 28_672, BACKING_END],
  [28_671, 28_672, 28_671],
  [28_672, 28_672, END],
  [END - 1, END - 1, END],
  [END, 'ENXIO', 'ENXIO'],
  [END + 1, 'ENXIO', 'ENXIO'],
];

test('DiskFile.seek() finds data and holes over the whole chain', (t) => {
  const { file } = chainOfTwo();
  for (const [offset, data, hole] of SEEKS) {
    t.is(
      outcome(() => file.seek(0, offset, 'data')),
      data,
      `data from ${offset}`,
    );
    t.is(
      outcome(() => file.seek(0, offset, 'hole')),
      hole,
      `hole from ${offset}`,
    );
  }
  t.is(SEEKS.length, 20);
});

test('DiskFile.seek() says ENXIO when only holes follow, and finds the hole at the very end', (t) => {
  const { node, file } = make();
  t.is(
    outcome(() => file.seek(0, 0, 'data')),
    'ENXIO',
  );
  t.is(file.seek(0, 0, 'hole'), 0);
  node.write(0, pattern(4096, 0), 0, 4096);
  t.is(
    outcome(() => file.seek(0, 4096, 'data')),
    'ENXIO',
  );
  node.write(0, pattern(SIZE, 0), 0, SIZE);
  t.is(file.seek(0, 0, 'hole'), SIZE);
  t.is(
    outcome(() => make({ size: 0 }).file.seek(0, 0, 'hole')),
    'ENXIO',
  );
});
