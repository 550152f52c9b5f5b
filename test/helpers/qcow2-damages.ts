/** Kinds of damage, each made by editing bytes of a real image. */
import { Qcow2Bytes } from './qcow2-bytes';

const { copied } = Qcow2Bytes;
const COPIED = 1n << 63n;
const PAST = 0x1000_0000;

export type ImageKind =
  | 'plain'
  | 'small'
  | 'narrow'
  | 'wide'
  | 'v2'
  | 'overlay'
  | 'snapshots'
  | 'compressed'
  | 'extended'
  | 'data-file'
  | 'bitmaps';

export interface Damage {
  name: string;
  image: ImageKind;
  damage(image: Qcow2Bytes): void;
  /** What qemu-img counts is not what we count, and why. */
  differs?: string;
  /** Guest clusters of 64 KiB whose content is lost, and may read differently after a repair. */
  lost?: number[];
  /** No check looks at it, and qemu-img then reads nothing of the image; why. */
  unreadable?: string;
  /** Not even we can repair it, and why. */
  remains?: string;
}

/** Clusters of the image that the table below calls by number: data of guest cluster 0 and 1. */
const DATA = 5;

function on(image: ImageKind, damages: Omit<Damage, 'image'>[]): Damage[] {
  return damages.map((damage) => ({ image, ...damage }));
}

function plain(name: string, damage: (image: Qcow2Bytes) => void, more: Partial<Damage> = {}): Damage {
  return { name, image: 'plain', damage, ...more };
}

const COUNTS: Damage[] = [
  plain('count of data 0', (i) => i.setCount(DATA, 0)),
  plain('count of data 2', (i) => i.setCount(DATA, 2)),
  plain('count of data 65535', (i) => i.setCount(DATA, 65535)),
  plain('count of the header 0', (i) => i.setCount(0, 0)),
  plain('count of the header 7', (i) => i.setCount(0, 7)),
  plain('count of the refcount table 0', (i) => i.setCount(1, 0)),
  plain('count of the refcount block 0', (i) => i.setCount(2, 0)),
  plain('count of the L1 table 0', (i) => i.setCount(3, 0)),
  plain('count of the L2 table 2', (i) => i.setCount(4, 2)),
  plain('count past the end of the file', (i) => i.setCount(4000, 1)),
  plain('all counts lost', (i) => i.bytes.fill(0, i.block(), i.block() + i.clusterSize)),
  plain('all counts one too high', (i) => {
    for (let cluster = 0; cluster < i.bytes.length / i.clusterSize; cluster++) i.setCount(cluster, 2);
  }),
  plain('dirty bit, counts lost', (i) => {
    i.set64(72, 1);
    for (let cluster = 6; cluster < 20; cluster++) i.setCount(cluster, 0);
  }),
  plain('dirty bit alone', (i) => i.set64(72, 1)),
  plain('corrupt bit alone', (i) => i.set64(72, 2)),
];

const STRUCTURE: Damage[] = [
  plain('refcount table empty', (i) => i.set64(i.refcountTable, 0)),
  plain('refcount block past the end', (i) => i.set64(i.refcountTable, PAST)),
  plain('refcount block far past the end', (i) => i.set64(i.refcountTable, 1n << 50n)),
  plain('refcount block not aligned', (i) => i.or64(i.refcountTable, 512n)),
  plain('refcount table entry with reserved bits', (i) => i.or64(i.refcountTable, 1n)),
  plain('refcount block named twice', (i) => i.set64(i.refcountTable + 8, i.block())),
  plain('refcount block is guest data', (i) => i.set64(i.refcountTable + 8, 0x60000)),
  plain('refcount block is the header', (i) => i.set64(i.refcountTable, 0x30000)),
  plain('refcount table past the end', (i) => i.set64(48, PAST)),
  plain('refcount table is the L1 table', (i) => i.set64(48, i.l1)),
  plain('refcount table is guest data', (i) => i.set64(48, 0x50000)),
  plain('refcount table not aligned', (i) => i.or64(48, 512n), { differs: 'qemu-img does not open it' }),
  plain('refcount table of no clusters', (i) => i.set32(56, 0), { differs: 'qemu-img does not open it' }),
  plain('refcount table at 2^64 - 2^16', (i) => i.set64(48, 2 ** 64 - 2 ** 16), {
    differs: 'qemu-img does not open it',
  }),
  plain('refcount table of 2^32 - 1 clusters', (i) => i.set32(56, 0xffffffff), {
    differs: 'qemu-img does not open it',
  }),
  plain('more refcount table than there is', (i) => i.set32(56, 2)),
];

const ENTRIES: Damage[] = [
  plain('L2 entry cleared', (i) => i.set64(i.entryAt(0), 0), { lost: [0] }),
  plain('L2 entry without copied flag', (i) => i.xor64(i.entryAt(0), COPIED)),
  plain('L1 entry without copied flag', (i) => i.xor64(i.l1, COPIED)),
  plain('L2 entry not aligned', (i) => i.or64(i.entryAt(0), 512n), { lost: [0] }),
  plain('L2 entry past the end', (i) => i.set64(i.entryAt(0), copied(PAST)), { lost: [0] }),
  plain('L2 entry far past the end', (i) => i.set64(i.entryAt(0), copied(1n << 50n)), { lost: [0] }),
  plain('L2 entry just past the end', (i) => i.set64(i.entryAt(0), copied(Math.ceil(i.bytes.length / 65536) * 65536)), {
    lost: [0],
  }),
  plain('L2 entry with high reserved bit', (i) => i.or64(i.entryAt(0), 1n << 57n)),
  plain('L2 entry with low reserved bit', (i) => i.or64(i.entryAt(0), 1n << 4n)),
  plain('two L2 entries for one cluster', (i) => i.set64(i.entryAt(1), i.u64(i.entryAt(0))), { lost: [1] }),
  plain(
    'ten L2 entries for one cluster',
    (i) => {
      for (let index = 1; index < 10; index++) i.set64(i.entryAt(index), i.u64(i.entryAt(0)));
    },
    { lost: [1, 2, 3, 4, 5, 6, 7, 8, 9] },
  ),
  plain('L2 entry with nothing but the copied flag', (i) => i.set64(i.entryAt(1), COPIED), { lost: [1] }),
  plain('L2 entry names the L1 table', (i) => i.set64(i.entryAt(1), copied(i.l1)), { lost: [1] }),
  plain('L2 entry names its own table', (i) => i.set64(i.entryAt(1), copied(i.l2())), { lost: [1] }),
  plain('L2 entry names the refcount table', (i) => i.set64(i.entryAt(1), copied(i.refcountTable)), { lost: [1] }),
  plain('L2 entry names the refcount block', (i) => i.set64(i.entryAt(1), copied(i.block())), { lost: [1] }),
  plain('allocated zero cluster', (i) => i.or64(i.entryAt(0), 1n), { lost: [0] }),
  plain('allocated zero cluster not aligned', (i) => i.or64(i.entryAt(0), 513n), { lost: [0] }),
  plain('compressed entry past the end', (i) => i.set64(i.entryAt(0), (1n << 62n) | BigInt(PAST)), { lost: [0] }),
  plain('L1 entry past the end', (i) => i.set64(i.l1, copied(PAST)), { lost: ALL() }),
  plain('L1 entry not aligned', (i) => i.or64(i.l1, 512n), { lost: ALL() }),
  plain('L1 entry with low reserved bit', (i) => i.or64(i.l1, 1n)),
  plain('L1 entry with high reserved bit', (i) => i.or64(i.l1, 1n << 60n)),
  plain('L1 entry names guest data', (i) => i.set64(i.l1, copied(0x70000)), { lost: ALL() }),
  plain('L1 entry cleared', (i) => i.set64(i.l1, 0), { lost: ALL() }),
  plain('L1 entry names the refcount block', (i) => i.set64(i.l1, copied(i.block())), {
    lost: ALL(),
    differs: 'entries of a table that is none',
    remains: 'the block is taken for a table, and its entries for guest data',
  }),
];

const FILES: Damage[] = [
  plain('file cut off', (i) => (i.bytes = i.bytes.subarray(0, i.bytes.length - 200 * 1024)), { lost: TAIL() }),
  plain('file cut in the middle of a cluster', (i) => (i.bytes = i.bytes.subarray(0, i.bytes.length - 1000)), {
    lost: TAIL(),
  }),
  plain('file with garbage at its end', (i) => (i.bytes = Buffer.concat([i.bytes, Buffer.alloc(300_000, 0x55)]))),
];

/** Every width of a count, at the same places. */
const WIDTHS: Damage[] = (['small', 'narrow', 'wide', 'v2'] as const).flatMap((image): Damage[] => [
  { name: 'L2 entry cleared', image, damage: (i) => i.set64(i.entryAt(0), 0), lost: [0] },
  { name: 'L2 entry past the end', image, damage: (i) => i.set64(i.entryAt(0), copied(PAST)), lost: [0] },
  { name: 'all counts lost', image, damage: (i) => i.bytes.fill(0, i.block(), i.block() + i.clusterSize) },
  {
    name: 'two L2 entries for one cluster',
    image,
    damage: (i) => i.set64(i.entryAt(1), i.u64(i.entryAt(0))),
    lost: image === 'small' ? [0] : [1],
    ...(image === 'narrow' ? { remains: 'a count of one bit cannot say 2' } : {}),
  },
]);

const OVERLAY: Damage[] = [
  { name: 'L2 entry past the end', image: 'overlay', damage: (i) => i.set64(i.entryAt(0), copied(PAST)), lost: [0] },
  { name: 'count of data 0', image: 'overlay', damage: (i) => i.setCount(DATA, 0) },
];

const SNAPSHOTS = on('snapshots', [
  { name: 'copied flag on a shared cluster', damage: (i) => i.xor64(i.entryAt(5), COPIED) },
  { name: 'copied flag of the L1 entry', damage: (i) => i.xor64(i.l1, COPIED) },
  { name: 'L2 entry of the disk cleared', damage: (i) => i.set64(i.entryAt(5), 0), lost: [5] },
  {
    name: 'counts of everything 1',
    damage: (i) => {
      for (let cluster = 0; cluster < i.bytes.length / i.clusterSize; cluster++) i.setCount(cluster, 1);
    },
  },
  { name: 'counts of everything 0', damage: (i) => i.bytes.fill(0, i.block(), i.block() + i.clusterSize) },
  { name: 'L1 entry of a snapshot past the end', damage: (i) => i.set64(Number(i.u64(i.snapshots)), PAST) },
  { name: 'L1 entry of a snapshot cleared', damage: (i) => i.set64(Number(i.u64(i.snapshots)), 0) },
  {
    name: 'L2 entry of a snapshot past the end',
    damage: (i) => i.set64(i.l2(0, Number(i.u64(i.snapshots))) + 8 * 32, PAST),
  },
  { name: 'L2 entry of a snapshot cleared', damage: (i) => i.set64(i.l2(0, Number(i.u64(i.snapshots))), 0) },
  { name: 'L1 table of a snapshot not aligned', damage: (i) => i.or64(i.snapshots, 512n) },
  { name: 'L1 table of a snapshot past the end', damage: (i) => i.set64(i.snapshots, PAST) },
  { name: 'L1 table of a snapshot too large', damage: (i) => i.set32(i.snapshots + 8, 0x7fff_ffff) },
  { name: 'L1 table of a snapshot empty', damage: (i) => i.set32(i.snapshots + 8, 0) },
  { name: 'one snapshot more than there is', damage: (i) => i.set32(60, 3) },
  { name: 'one snapshot less than there is', damage: (i) => i.set32(60, 1) },
  { name: 'long id of a snapshot', damage: (i) => i.bytes.writeUInt16BE(60_000, i.snapshots + 12) },
]);

const COMPRESSED_BIT_LENGTH = 0x7fn << 54n;
const COMPRESSED = on('compressed', [
  { name: 'copied flag on a compressed cluster', damage: (i) => i.or64(i.entryAt(0), COPIED) },
  { name: 'compressed cluster past the end', damage: (i) => i.or64(i.entryAt(0), BigInt(PAST)), lost: [0] },
  { name: 'compressed cluster cleared', damage: (i) => i.set64(i.entryAt(0), 0), lost: [0] },
  { name: 'longest compressed cluster', damage: (i) => i.or64(i.entryAt(0), COMPRESSED_BIT_LENGTH) },
  { name: 'count of shared compressed clusters 1', damage: (i) => i.setCount(DATA, 1) },
]);

const EXTENDED = on('extended', [
  { name: 'subclusters both zero and allocated', damage: (i) => i.set64(i.entryAt(0, 16) + 8, 0x1_ffff_ffffn) },
  { name: 'allocated subclusters without cluster', damage: (i) => i.set64(i.entryAt(100, 16) + 8, 5) },
  { name: 'bit 0 of an extended entry', damage: (i) => i.or64(i.entryAt(0, 16), 1n) },
  { name: 'entry not aligned', damage: (i) => i.or64(i.entryAt(0, 16), 512n), lost: [0] },
  {
    name: 'entry not aligned, nothing allocated',
    damage: (i) => {
      i.or64(i.entryAt(0, 16), 512n);
      i.set64(i.entryAt(0, 16) + 8, 0);
    },
    lost: [0],
  },
  { name: 'compressed entry with bitmap', damage: (i) => i.set64(i.entryAt(0, 16), (1n << 62n) | 0x50000n), lost: [0] },
  { name: 'entry past the end', damage: (i) => i.set64(i.entryAt(0, 16), copied(PAST)), lost: [0] },
]);

const DATA_FILE = on('data-file', [
  { name: 'entry not aligned', damage: (i) => i.or64(i.entryAt(0), 512n), lost: [0] },
  { name: 'copied flag missing', damage: (i) => i.xor64(i.entryAt(1), COPIED) },
  {
    name: 'entry past the end',
    damage: (i) => i.set64(i.entryAt(0), copied(PAST)),
    unreadable: 'the place in the data file is not that of the guest',
  },
  { name: 'compressed entry', damage: (i) => i.set64(i.entryAt(1), (1n << 62n) | 0x30000n), lost: [1] },
  { name: 'count of the L2 table 0', damage: (i) => i.setCount(4, 0) },
]);

const BITMAPS = on('bitmaps', [
  { name: 'bitmaps inconsistent', damage: (i) => i.set64(88, 0) },
  { name: 'table of a bitmap past the end', damage: (i) => i.set64(i.bitmapDirectory, PAST) },
  { name: 'cluster of a bitmap past the end', damage: (i) => i.set64(Number(i.u64(i.bitmapDirectory)), PAST) },
  { name: 'counts lost', damage: (i) => i.bytes.fill(0, i.block(), i.block() + i.clusterSize) },
  {
    name: 'table of a bitmap not aligned',
    damage: (i) => i.or64(i.bitmapDirectory, 512n),
    differs: 'qemu-img does not open it',
  },
  {
    name: 'reserved bits of a bitmap table',
    damage: (i) => i.or64(Number(i.u64(i.bitmapDirectory)), 4n),
    differs: 'qemu-img does not open it',
  },
  {
    name: 'name of a bitmap longer than the directory',
    damage: (i) => i.bytes.writeUInt16BE(5000, i.bitmapDirectory + 18),
    differs: 'qemu-img does not open it',
  },
]);

export const DAMAGES: readonly Damage[] = [
  ...COUNTS,
  ...STRUCTURE,
  ...ENTRIES,
  ...FILES,
  ...WIDTHS,
  ...OVERLAY,
  ...SNAPSHOTS,
  ...COMPRESSED,
  ...EXTENDED,
  ...DATA_FILE,
  ...BITMAPS,
];

/** Everything that the first L2 table maps. */
function ALL(): number[] {
  return Array.from({ length: 128 }, (_, index) => index);
}

/** Guest clusters whose data lies at the end of the file. */
function TAIL(): number[] {
  return [15, 32, 64, 65];
}
