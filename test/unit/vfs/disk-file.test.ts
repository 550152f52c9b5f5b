import test from 'ava';
import { BlockError } from '../../../src/errors';
import type { DiskFile } from '../../../src/vfs/disk-file';
import { contentOf, MTIME_MS, make, outcome, SIZE } from './disk-fixture';
import { pattern } from './memory-node';

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
