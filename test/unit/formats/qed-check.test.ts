import * as fs from 'node:fs';
import test, { type ExecutionContext } from 'ava';
import { BlockError } from '../../../src/errors';
import { CHECK_MESSAGES_MAX } from '../../../src/formats/check-messages';
import type { CheckResult, RepairMode } from '../../../src/formats/format';
import { checkQed } from '../../../src/formats/qed/check';
import { readQedHeader } from '../../../src/formats/qed/header';
import { FaultyStorage } from '../../../src/storage/faulty';
import { CraftedImage } from './qed-bytes';

const CLUSTER = 0x1000;

function check(image: CraftedImage, repair: RepairMode = 'none'): CheckResult {
  return image.open((header, storage) => checkQed(header, storage, repair), repair === 'none');
}

/** An L2 table at cluster 2, data at 3 and 4 for guest clusters 0 and 1. */
function soundImage(t: ExecutionContext, fields = {}): CraftedImage {
  return new CraftedImage(t, fields, 3).l1(0, 2).l2(2, 0, 3).l2(2, 1, 4).data(3).data(4);
}

function counts(result: CheckResult): number[] {
  return [result.checkErrors, result.corruptions, result.leaks, result.corruptionsFixed, result.leaksFixed];
}

test('checkQed() finds nothing wrong with an empty image and with a sound one', (t) => {
  const empty = check(new CraftedImage(t));
  t.deepEqual(counts(empty), [0, 0, 0, 0, 0]);
  t.is(empty.totalClusters, 256);
  t.is(empty.allocatedClusters, 0);
  const sound = check(soundImage(t));
  t.deepEqual(counts(sound), [0, 0, 0, 0, 0]);
  t.is(sound.allocatedClusters, 2);
  t.is(sound.fragmentedClusters, 0);
  t.deepEqual(sound.messages, []);
});

test('checkQed() counts a disk that ends inside a cluster as one cluster more', (t) => {
  t.is(check(new CraftedImage(t, { size: 0x1200n })).totalClusters, 2);
  t.is(check(new CraftedImage(t, { size: 0n })).totalClusters, 0);
});

test('checkQed() counts clusters that do not follow each other, per table', (t) => {
  const image = new CraftedImage(t, {}, 6).l1(0, 2).l1(1, 3);
  image.l2(2, 0, 5).l2(2, 7, 4).l2(2, 8, 6).l2(3, 0, 7);
  for (let cluster = 4; cluster < 8; cluster++) image.data(cluster);
  const result = check(image);
  t.is(result.allocatedClusters, 4);
  t.is(result.fragmentedClusters, 2);
});

test('checkQed() takes zero clusters and a trailing part of a cluster for legal', (t) => {
  const image = soundImage(t).entry(2, 2, 1);
  fs.truncateSync(image.file, 5 * CLUSTER + 100);
  t.deepEqual(counts(check(image)), [0, 0, 0, 0, 0]);
  t.is(check(image).allocatedClusters, 2);
});

// QEMU divides by cluster_size - 1: from this many clusters on it sees one too many and calls it leaked.
test('checkQed() sees no false leak in a file of cluster_size - 1 clusters and more', (t) => {
  const clusters = CLUSTER + 8;
  const tables = Math.ceil(clusters / 512) + 1;
  const image = new CraftedImage(t, { size: 0x40000000n }, tables + clusters);
  const first = 2 + tables;
  for (let table = 0; table < tables; table++) image.l1(table, 2 + table);
  const entries = Buffer.alloc(tables * CLUSTER);
  for (let index = 0; index < clusters; index++) entries.writeBigUInt64LE(BigInt((first + index) * CLUSTER), index * 8);
  image.write(2 * CLUSTER, entries);
  const result = check(image);
  t.deepEqual(counts(result), [0, 0, 0, 0, 0]);
  t.is(result.allocatedClusters, clusters);
});

// QEMU cannot open these, because it takes the table for an empty one.
test('checkQed() checks images with tables of 1, 2, 4, 8 and 16 clusters', (t) => {
  for (const tableSize of [1, 2, 4, 8, 16]) {
    const image = new CraftedImage(t, { tableSize }, tableSize + 1);
    const data = image.first + tableSize;
    image
      .l1(0, image.first)
      .l2(image.first, (tableSize * CLUSTER) / 8 - 1, data)
      .data(data);
    const result = check(image);
    t.deepEqual(counts(result), [0, 0, 0, 0, 0], `${tableSize}`);
    t.is(result.allocatedClusters, 1);
  }
});

const INVALID: [title: string, damage: (image: CraftedImage) => void, entry: number, says: string][] = [
  ['L2 entry unaligned', (image) => image.entry(2, 1, 0x4001), 2 * CLUSTER + 8, '0x4001 is not a multiple'],
  ['L2 entry in the header', (image) => image.entry(2, 1, 2), 2 * CLUSTER + 8, '0x2 is not a multiple'],
  [
    'L2 entry past the end',
    (image) => image.l2(2, 1, 5),
    2 * CLUSTER + 8,
    '0x5000 is past the end of the file (0x5000)',
  ],
  [
    'L2 entry near 2^64',
    (image) => image.entry(2, 1, 0xfffffffffffff000n),
    2 * CLUSTER + 8,
    '0xfffffffffffff000 is past',
  ],
  ['L1 entry unaligned', (image) => image.entry(1, 1, 0x4001), CLUSTER + 8, 'L1 entry 1: L2 table offset 0x4001'],
  ['L1 entry 1', (image) => image.entry(1, 1, 1), CLUSTER + 8, 'L1 entry 1: L2 table offset 0x1 is not a multiple'],
  [
    'L1 entry past the end',
    (image) => image.l1(511, 5),
    CLUSTER + 511 * 8,
    'L1 entry 511: L2 table offset 0x5000 is past',
  ],
  ['L1 entry above 2^53', (image) => image.entry(1, 1, 1n << 60n), CLUSTER + 8, '0x1000000000000000 is past'],
];

test('checkQed() finds entries that point to no possible place, and clears them', (t) => {
  for (const [title, damage, entry, says] of INVALID) {
    const image = soundImage(t);
    damage(image);
    const found = check(image);
    t.is(found.corruptions, 1, title);
    t.true(
      found.messages[0]?.startsWith('ERROR ') && found.messages[0].includes(says),
      `${title}: ${found.messages[0]}`,
    );
    const before = fs.readFileSync(image.file);
    const leaksOnly = check(image, 'leaks');
    t.is(leaksOnly.corruptions, 1, title);
    t.deepEqual(fs.readFileSync(image.file), before, `${title}: -r leaks changes nothing while there are corruptions`);
    const repaired = check(image, 'all');
    t.is(repaired.corruptionsFixed, 1, title);
    t.is(repaired.corruptions, 0, title);
    t.is(image.read(entry), 0n, title);
    t.deepEqual(counts(check(image)), [0, 0, 0, 0, 0], title);
  }
  t.is(INVALID.length, 8);
});

test('checkQed() refuses a table of which a part lies past the end of the file', (t) => {
  const image = new CraftedImage(t, { tableSize: 4 }, 3).l1(0, 5);
  t.is(check(image).corruptions, 1);
  t.is(check(new CraftedImage(t, { tableSize: 4 }, 4).l1(0, 5)).corruptions, 0);
});

const DOUBLED: [title: string, damage: (image: CraftedImage) => void, says: string][] = [
  ['data twice', (image) => image.l2(2, 5, 3), 'Guest offset 0x5000: cluster at 0x3000 is used twice'],
  ['data over its own table', (image) => image.l2(2, 5, 2), 'cluster at 0x2000 is used twice'],
  ['data over the L1 table', (image) => image.l2(2, 5, 1), 'cluster at 0x1000 is used twice'],
  ['a table twice', (image) => image.l1(1, 2), 'L1 entry 1: L2 table at 0x2000 is used twice'],
  ['a table over data', (image) => image.l1(1, 3), 'L1 entry 1: L2 table at 0x3000 is used twice'],
  ['a table over the L1 table', (image) => image.l1(1, 1), 'L1 entry 1: L2 table at 0x1000 is used twice'],
];

test('checkQed() reports clusters that are used twice and leaves them alone', (t) => {
  for (const [title, damage, says] of DOUBLED) {
    // A leaked cluster beside it: it may belong to whoever has the wrong entry, so it is not freed either.
    const image = soundImage(t);
    fs.truncateSync(image.file, 6 * CLUSTER);
    image.data(5);
    damage(image);
    const before = fs.readFileSync(image.file);
    const result = check(image, 'all');
    t.is(result.corruptions, 1, title);
    t.is(result.leaks, 1, title);
    t.is(result.corruptionsFixed + result.leaksFixed, 0, title);
    t.true(result.messages[0]?.includes(says), `${title}: ${result.messages[0]}`);
    t.deepEqual(fs.readFileSync(image.file), before, title);
  }
  t.is(DOUBLED.length, 6);
});

test('checkQed() never writes into a table that may be a guest cluster', (t) => {
  // L1 entry 1 points to guest data, full of what look like invalid entries.
  const image = soundImage(t).l1(1, 3);
  const swapped = new CraftedImage(t, {}, 3).l1(0, 3).l1(1, 2).l2(2, 0, 3).l2(2, 1, 4).data(3).data(4);
  for (const crafted of [image, swapped]) {
    const guestData = fs.readFileSync(crafted.file).subarray(3 * CLUSTER, 4 * CLUSTER);
    check(crafted, 'all');
    t.deepEqual(fs.readFileSync(crafted.file).subarray(3 * CLUSTER, 4 * CLUSTER), guestData);
  }
});

test('checkQed() frees leaks: cut at the end, punched in the middle', (t) => {
  const image = new CraftedImage(t, {}, 8).l1(0, 2).l2(2, 0, 3).l2(2, 1, 6);
  for (let cluster = 3; cluster < 10; cluster++) image.data(cluster);
  const found = check(image);
  t.is(found.leaks, 5);
  t.deepEqual(found.messages, ['Leaked clusters: 2 at 0x4000', 'Leaked clusters: 3 at 0x7000']);
  const blocks = fs.statSync(image.file).blocks;
  const repaired = check(image, 'leaks');
  t.deepEqual(counts(repaired), [0, 0, 0, 0, 5]);
  const stat = fs.statSync(image.file);
  t.is(stat.size, 7 * CLUSTER);
  t.is(stat.blocks, blocks - (5 * CLUSTER) / 512);
  const bytes = fs.readFileSync(image.file);
  t.true(bytes.subarray(4 * CLUSTER, 6 * CLUSTER).every((byte) => byte === 0));
  t.true(
    bytes.subarray(6 * CLUSTER).every((byte) => byte === 0xdd),
    'the cluster behind is untouched',
  );
  t.deepEqual(counts(check(image)), [0, 0, 0, 0, 0], 'a hole in the middle wastes nothing');
});

test('checkQed() counts unused holes at the end of the file, and cuts them off', (t) => {
  const image = soundImage(t);
  fs.truncateSync(image.file, 9 * CLUSTER + 7);
  t.is(check(image).leaks, 4);
  t.deepEqual(counts(check(image, 'leaks')), [0, 0, 0, 0, 4]);
  t.is(fs.statSync(image.file).size, 5 * CLUSTER);
});

test('checkQed() clears need-check when the image is sound afterwards, and autoclear bits before it changes anything', (t) => {
  const clean = soundImage(t, { features: 2n, autoclear: 5n, compat: 9n });
  check(clean);
  t.is(clean.read(16), 2n, 'a check alone changes nothing');
  check(clean, 'leaks');
  t.deepEqual([clean.read(16), clean.read(24), clean.read(32)], [0n, 9n, 0n]);
  const corrupt = soundImage(t, { features: 2n }).l2(2, 5, 3);
  check(corrupt, 'all');
  t.is(corrupt.read(16), 2n, 'still to be checked');
});

test('checkQed() tells when a table cannot be read, and calls nothing leaked then', (t) => {
  const image = soundImage(t).data(4);
  fs.truncateSync(image.file, 8 * CLUSTER);
  image.open((header, storage) => {
    const broken = new FaultyStorage(storage);
    const original = broken.read.bind(broken);
    broken.read = (offset, target, at, length) => {
      if (offset === 2 * CLUSTER) throw new BlockError('IO', 'Cannot read: Input/output error');
      return original(offset, target, at, length);
    };
    const result = checkQed(header, broken, 'all');
    t.deepEqual(counts(result), [1, 0, 0, 0, 0]);
    t.deepEqual(result.messages, [
      'ERROR L2 table of L1 entry 0 at 0x2000 cannot be read: Cannot read: Input/output error',
    ]);
  });
  t.is(fs.statSync(image.file).size, 8 * CLUSTER);
});

test('checkQed() keeps a bounded number of messages', (t) => {
  const image = soundImage(t);
  for (let index = 2; index < 502; index++) image.entry(2, index, 0x123);
  const result = check(image);
  t.is(result.corruptions, 500);
  t.is(result.messages.length, CHECK_MESSAGES_MAX + 1);
  t.is(result.messages.at(-1), `... and ${500 - CHECK_MESSAGES_MAX} more inconsistencies`);
});

test('checkQed() refuses to repair what is open read-only, and a file with too many clusters', (t) => {
  const image = soundImage(t);
  image.open((header, storage) => t.throws(() => checkQed(header, storage, 'all'), { code: 'READ_ONLY' }), true);
  image.open((header, storage) => {
    const huge = new FaultyStorage(storage);
    huge.size = () => 2 ** 31 * CLUSTER + CLUSTER;
    t.throws(() => checkQed(header, huge, 'none'), { code: 'LIMIT_EXCEEDED', message: /2147483649 clusters/ });
  });
});

test('checkQed() goes over a table of 1 GiB of holes without reading it', (t) => {
  const clusterSize = 0x4000000;
  const image = new CraftedImage(t, { clusterSize, tableSize: 16, l1Offset: BigInt(clusterSize) }, 17);
  image.l1(0, 17).l2(17, 3, 33);
  const result = check(image);
  t.deepEqual(counts(result), [0, 0, 0, 0, 0]);
  t.is(result.allocatedClusters, 1);
  t.is(
    image.open((_header, storage) => readQedHeader(storage).tableSize),
    16,
  );
});
