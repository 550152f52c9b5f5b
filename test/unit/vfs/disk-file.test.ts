import test from 'ava';
import { BlockError } from '../../../src/errors';
import { DiskFile } from '../../../src/vfs/disk-file';
import type { FallocateMode } from '../../../src/vfs/filesystem';
import { MemoryNode, type MemoryNodeOptions, pattern } from './memory-node';

const SIZE = 16 * 1024;
const MTIME_MS = 1_600_000_000_000;

interface Made {
  node: MemoryNode;
  file: DiskFile;
  times: Float64Array;
}

function make(options: { growable?: boolean; writable?: boolean } & Partial<MemoryNodeOptions> = {}): Made {
  const { growable = false, writable = true, ...more } = options;
  const node = new MemoryNode({ size: SIZE, ...more });
  const times = new Float64Array([0, MTIME_MS]);
  const facts = { ino: 2, mode: 0o600, uid: 7, gid: 8, times, clock: 1 };
  return { node, times, file: new DiskFile(node, facts, { writable, growable }) };
}

function contentOf(node: MemoryNode): Uint8Array {
  const bytes = new Uint8Array(node.size());
  node.read(0, bytes, 0, bytes.length);
  return bytes;
}

/** `ENOSPC` for what throws it, else what is returned. */
function outcome<T>(run: () => T): T | string {
  try {
    return run();
  } catch (error) {
    return String((error as { code?: unknown }).code);
  }
}

const READS: [offset: number, length: number, expected: number][] = [
  [0, 0, 0],
  [0, 1, 1],
  [0, SIZE, SIZE],
  [0, SIZE + 1, SIZE],
  [1, SIZE, SIZE - 1],
  [511, 4096, 4096],
  [SIZE - 1, 1, 1],
  [SIZE - 1, 2, 1],
  [SIZE, 0, 0],
  [SIZE, 1, 0],
  [SIZE + 1, 1, 0],
  [2 ** 52, 4096, 0],
];

test('DiskFile.read() is short at the end and touches nothing else', (t) => {
  const { node, file } = make();
  const content = pattern(SIZE, 1);
  node.write(0, content, 0, SIZE);
  for (const [offset, length, expected] of READS) {
    const target = new Uint8Array(length + 20).fill(0xee);
    t.is(file.read(0, offset, target, 10, length), expected, `${length} at ${offset}`);
    t.deepEqual(target.subarray(10, 10 + expected), content.subarray(offset, offset + expected));
    t.true(target.subarray(0, 10).every((byte) => byte === 0xee));
    t.true(target.subarray(10 + expected).every((byte) => byte === 0xee));
  }
  t.is(READS.length, 12);
});

/** What a fixed disk answers, and a growable one's size after it. */
const WRITES: [offset: number, length: number, fixed: number | string, grownTo: number][] = [
  [0, 0, 0, SIZE],
  [0, 1, 1, SIZE],
  [0, SIZE, SIZE, SIZE],
  [0, SIZE + 1, SIZE, SIZE + 512],
  [511, 4097, 4097, SIZE],
  [SIZE - 1, 1, 1, SIZE],
  [SIZE - 1, 2, 1, SIZE + 512],
  [SIZE - 512, 1024, 512, SIZE + 512],
  [SIZE - 512, 1025, 512, SIZE + 1024],
  [SIZE, 0, 0, SIZE],
  [SIZE, 1, 'ENOSPC', SIZE + 512],
  [SIZE, 512, 'ENOSPC', SIZE + 512],
  [SIZE, 513, 'ENOSPC', SIZE + 1024],
  [SIZE + 1, 1, 'ENOSPC', SIZE + 512],
  [SIZE + 100_000, 5, 'ENOSPC', SIZE + 100_352],
];

test('DiskFile.write() on a fixed disk is short across the end and ENOSPC at or past it', (t) => {
  for (const [offset, length, expected] of WRITES) {
    const { node, file } = make();
    const source = pattern(length + 20, 2);
    const label = `${length} at ${offset}`;
    t.is(
      outcome(() => file.write(0, offset, source, 10, length, false)),
      expected,
      label,
    );
    const shadow = new Uint8Array(SIZE);
    const count = typeof expected === 'number' ? expected : 0;
    if (count > 0) shadow.set(source.subarray(10, 10 + count), offset);
    t.is(node.size(), SIZE, label);
    t.deepEqual(contentOf(node), shadow, label);
  }
  t.is(WRITES.length, 15);
});

test('DiskFile.write() on a growable disk grows it first, to whole sectors', (t) => {
  for (const [offset, length, , grownTo] of WRITES) {
    const { node, file } = make({ growable: true });
    const source = pattern(length + 20, 3);
    const label = `${length} at ${offset}`;
    t.is(file.write(0, offset, source, 10, length, false), length, label);
    const shadow = new Uint8Array(grownTo);
    if (length > 0) shadow.set(source.subarray(10, 10 + length), offset);
    t.is(node.size(), grownTo, label);
    t.deepEqual(contentOf(node), shadow, label);
    const calls = [
      ...(grownTo > SIZE ? [`resize ${grownTo}`] : []),
      ...(length > 0 ? [`write ${offset} ${length}`] : []),
    ];
    t.deepEqual(node.calls, calls, label);
  }
});

test('DiskFile.write() past the end says how to let the disk grow', (t) => {
  const { file } = make({ path: '/images/vm.qed' });
  t.throws(() => file.write(0, SIZE, pattern(512, 0), 0, 512, false), {
    message:
      'Cannot write past the end of "/images/vm.qed": 512 bytes at 16384 do not fit into 16384; -o growable lets disks grow',
  });
});

test('DiskFile.write() refuses to grow past what numbers can count', (t) => {
  const { node, file } = make({ growable: true });
  t.is(
    outcome(() => file.write(0, Number.MAX_SAFE_INTEGER - 10, pattern(5, 0), 0, 5, false)),
    'EFBIG',
  );
  t.is(
    outcome(() => file.write(0, 2 ** 63, pattern(5, 0), 0, 5, false)),
    'EFBIG',
  );
  t.is(
    outcome(() => file.setSize(2 ** 63)),
    'EFBIG',
  );
  t.deepEqual(node.calls, []);
});

test('DiskFile.write() takes the room that another thread made meanwhile', (t) => {
  const { node, file } = make({ growable: true });
  node.beforeResize = () => {
    node.beforeResize = undefined;
    node.resize(SIZE + 8192);
  };
  t.is(file.write(0, SIZE, pattern(512, 4), 0, 512, false), 512);
  t.is(node.size(), SIZE + 8192);
});

test('DiskFile.write() passes on why the disk could not grow, and writes nothing', (t) => {
  const { node, file } = make({ growable: true });
  const error = new BlockError('NO_SPACE', 'Cannot grow');
  node.failing = { pattern: /^resize/, error };
  t.is(
    t.throws(() => file.write(0, SIZE - 1, pattern(2, 0), 0, 2, false)),
    error,
  );
  t.deepEqual(node.calls, [`resize ${SIZE + 512}`]);
});

test('DiskFile.write() with sync flushes after the data, and only then', (t) => {
  const { node, file } = make();
  file.write(0, 0, pattern(512, 0), 0, 512, false);
  file.write(0, 512, pattern(512, 0), 0, 512, true);
  t.deepEqual(node.calls, ['write 0 512', 'write 512 512', 'flush']);
  node.failing = { pattern: /^flush/, error: new BlockError('IO', 'lost') };
  t.is(
    outcome(() => file.write(0, 0, pattern(512, 0), 0, 512, true)),
    'IO',
  );
});

test('DiskFile.fsync() flushes what is writable and leaves the rest alone', (t) => {
  const { node, file } = make();
  file.fsync();
  t.deepEqual(node.calls, ['flush']);
  const layer = make({ writable: false });
  layer.file.fsync();
  t.deepEqual(layer.node.calls, []);
});

test('DiskFile answers EROFS to whatever would change a read-only disk', (t) => {
  const cases = [make({ writable: false }), make({ readOnly: true }), make({ writable: false, growable: true })];
  for (const { node, file } of cases) {
    const attempts: (() => unknown)[] = [
      () => file.open({ read: true, write: true, truncate: false }),
      () => file.open({ read: false, write: true, truncate: true }),
      () => file.open({ read: true, write: false, truncate: true }),
      () => file.write(0, 0, pattern(1, 0), 0, 1, false),
      () => file.write(0, SIZE, pattern(1, 0), 0, 1, false),
      () => file.setSize(0),
      () => file.setSize(SIZE),
      () => file.setSize(SIZE * 2),
      () => file.fallocate(0, 'allocate', false, 0, 512),
      () => file.fallocate(0, 'punch-hole', true, 0, 512),
      () => file.fallocate(0, 'zero-range', true, 0, 512),
    ];
    t.deepEqual(
      attempts.map(outcome),
      attempts.map(() => 'EROFS'),
    );
    t.deepEqual(file.open({ read: true, write: false, truncate: false }), { handle: 0, isDisk: true });
    t.deepEqual(node.calls, []);
  }
});

test('DiskFile.open() keeps the size for O_TRUNC', (t) => {
  for (const growable of [false, true]) {
    const { node, file } = make({ growable });
    t.true(file.open({ read: false, write: true, truncate: true }).isDisk);
    t.is(node.size(), SIZE);
    t.deepEqual(node.calls, []);
  }
});

const SIZES: [size: number, fixed: string | undefined, grownTo: number][] = [
  [0, undefined, SIZE],
  [1, undefined, SIZE],
  [SIZE - 1, undefined, SIZE],
  [SIZE, undefined, SIZE],
  [SIZE + 1, 'EPERM', SIZE + 512],
  [SIZE + 512, 'EPERM', SIZE + 512],
  [SIZE + 513, 'EPERM', SIZE + 1024],
  [SIZE * 3, 'EPERM', SIZE * 3],
];

test('DiskFile.setSize() never shrinks, and grows only what is growable', (t) => {
  for (const [size, expected, grownTo] of SIZES) {
    const fixed = make();
    t.is(
      outcome(() => fixed.file.setSize(size)),
      expected,
      `${size}`,
    );
    t.is(fixed.node.size(), SIZE);
    t.deepEqual(fixed.node.calls, []);
    const growing = make({ growable: true });
    t.is(
      outcome(() => growing.file.setSize(size)),
      undefined,
      `${size}`,
    );
    t.is(growing.node.size(), grownTo, `${size}`);
  }
  t.is(SIZES.length, 8);
  t.throws(() => make().file.setSize(SIZE + 1), { message: /-o growable/ });
});

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

const BLOCK_SIZES: [clusterSize: number, expected: number][] = [
  [512, 4096],
  [4096, 4096],
  [65_536, 65_536],
  [1024 * 1024, 1024 * 1024],
  [64 * 1024 * 1024, 1024 * 1024],
];

test('DiskFile.attributes() shows virtual size, real allocation and preferred I/O size', (t) => {
  const { node, file } = make();
  const fixed = { ino: 2, kind: 'file', mode: 0o600, uid: 7, gid: 8, nlink: 1 };
  const times = { atimeMs: MTIME_MS, mtimeMs: MTIME_MS, ctimeMs: MTIME_MS };
  t.deepEqual(file.attributes() as unknown, { ...fixed, size: SIZE, blocks: 0, blksize: 4096, ...times });
  node.write(0, pattern(5000, 0), 0, 5000);
  t.is(file.attributes().blocks, 16);
  node.writeZeroes(0, 4096);
  t.is(file.attributes().blocks, 8);
  node.resize(SIZE * 2);
  t.is(file.attributes().size, SIZE * 2);
  for (const [clusterSize, expected] of BLOCK_SIZES) t.is(make({ clusterSize }).file.attributes().blksize, expected);
  const raw = make({ clusterSize: 512 });
  raw.node.write(0, pattern(1, 0), 0, 1);
  t.is(raw.file.attributes().blocks, 1);
});

test('DiskFile moves its time with each change, for all threads', (t) => {
  const changes: [string, (file: DiskFile) => unknown, boolean][] = [
    ['write', (file) => file.write(0, 0, pattern(1, 0), 0, 1, false), true],
    ['punch', (file) => file.fallocate(0, 'punch-hole', true, 0, 512), true],
    ['grow', (file) => file.setSize(SIZE * 2), true],
    ['empty write', (file) => file.write(0, 0, pattern(1, 0), 0, 0, false), false],
    ['truncate', (file) => file.setSize(0), false],
    ['read', (file) => file.read(0, 0, new Uint8Array(1), 0, 1), false],
    ['fsync', (file) => file.fsync(), false],
  ];
  for (const [name, change, moves] of changes) {
    const { file, times } = make({ growable: true });
    change(file);
    t.is(file.attributes().mtimeMs > MTIME_MS, moves, name);
    t.is(times[1], file.attributes().mtimeMs, name);
    t.is(times[0], 0, 'no other clock moves');
  }
});

test('DiskFile passes errors of the node on as they are', (t) => {
  const { node, file } = make();
  const error = new BlockError('CORRUPT_IMAGE', 'bad entry');
  node.failing = { pattern: /./, error };
  const attempts: (() => unknown)[] = [
    () => file.read(0, 0, new Uint8Array(1), 0, 1),
    () => file.write(0, 0, pattern(1, 0), 0, 1, false),
    () => file.fsync(),
    () => file.fallocate(0, 'punch-hole', true, 0, 1),
    () => file.fallocate(0, 'allocate', false, 0, 1),
  ];
  for (const attempt of attempts) t.is(t.throws(attempt), error);
});
