import test from 'ava';
import {
  encodeAttributes,
  encodeAttributesReply,
  encodeDirectoryEntry,
  encodeEntry,
  encodeOffset,
  encodeOpened,
  encodeStatistics,
  encodeWritten,
} from '../../../src/fuse/kernel/codec';
import { encodeInit, negotiate } from '../../../src/fuse/kernel/init';
import { fallocateMode } from '../../../src/fuse/kernel/operations';
import { INIT_FLAG } from '../../../src/fuse/kernel/protocol';
import type { FileAttributes } from '../../../src/vfs/filesystem';

const ATTRIBUTES: FileAttributes = {
  ino: 2 ** 33 + 7,
  kind: 'file',
  mode: 0o640,
  uid: 1000,
  gid: 4_000_000_000,
  nlink: 1,
  size: 2 ** 52 + 1,
  blocks: 2 ** 43 + 1,
  blksize: 65536,
  atimeMs: 1_700_000_000_123,
  mtimeMs: 2 ** 32 * 1000 + 5.5,
  ctimeMs: -1,
  isDisk: true,
};

/** A buffer full of an older reply. */
const dirty = (): Buffer => Buffer.alloc(512, 0xff);

test('encodeAttributes() lays out struct fuse_attr', (t) => {
  const target = dirty();
  t.is(encodeAttributes(target, 8, ATTRIBUTES), 88);
  const u64 = (at: number): number => Number(target.readBigUInt64LE(8 + at));
  const u32 = (at: number): number => target.readUInt32LE(8 + at);
  t.deepEqual([u64(0), u64(8), u64(16)], [ATTRIBUTES.ino, ATTRIBUTES.size, ATTRIBUTES.blocks]);
  t.deepEqual([u64(24), u64(32), u64(40)], [1_700_000_000, 2 ** 32, 0], 'seconds');
  t.deepEqual([u32(48), u32(52), u32(56)], [123_000_000, 5_500_000, 0], 'nanoseconds');
  t.is(u32(60), 0o100640);
  t.deepEqual([u32(64), u32(68), u32(72), u32(76)], [1, 1000, 4_000_000_000, 0], 'nlink, uid, gid, rdev');
  t.deepEqual([u32(80), u32(84)], [65536, 0], 'blksize, flags');
  t.is(target[7], 0xff);
  t.is(target[8 + 88], 0xff);
});

test('encodeAttributesReply() and encodeEntry() let disks and directories be kept for a second, text not at all', (t) => {
  const cases = [
    [{ ...ATTRIBUTES }, 1],
    [{ ...ATTRIBUTES, isDisk: false }, 0],
    [{ ...ATTRIBUTES, isDisk: false, kind: 'directory' as const }, 1],
  ] as const;
  for (const [attributes, seconds] of cases) {
    const target = dirty();
    t.is(encodeAttributesReply(target, 0, attributes), 104);
    t.is(Number(target.readBigUInt64LE(0)), seconds);
    t.is(target.readUInt32LE(8), 0);
    t.is(Number(target.readBigUInt64LE(16)), ATTRIBUTES.ino);
    const entry = dirty();
    t.is(encodeEntry(entry, 0, attributes), 128);
    t.is(Number(entry.readBigUInt64LE(0)), ATTRIBUTES.ino);
    t.is(Number(entry.readBigUInt64LE(8)), 0, 'generation');
    t.is(Number(entry.readBigUInt64LE(16)), 1, 'names always for a second');
    t.is(Number(entry.readBigUInt64LE(24)), seconds);
    t.is(Number(entry.readBigUInt64LE(32)), 0, 'nanoseconds');
    t.is(Number(entry.readBigUInt64LE(48)), ATTRIBUTES.size);
  }
});

test('encodeDirectoryEntry() pads to 8 bytes, counts bytes of names and stops where the room ends', (t) => {
  const target = dirty();
  const entry = { name: 'd\u00efsk', ino: 2 ** 40, kind: 'file' as const };
  t.is(encodeDirectoryEntry(target, 16, 48, entry, 7), 32);
  t.is(Number(target.readBigUInt64LE(16)), 2 ** 40);
  t.is(Number(target.readBigUInt64LE(24)), 7);
  t.is(target.readUInt32LE(32), 5);
  t.is(target.readUInt32LE(36), 8);
  t.deepEqual([...target.subarray(40, 48)], [...Buffer.from('d\u00efsk'), 0, 0, 0]);
  t.is(encodeDirectoryEntry(target, 16, 47, entry, 7), 0);
  t.is(encodeDirectoryEntry(target, 0, 512, { ...entry, name: '12345678', kind: 'directory' }, 1), 32);
  t.is(target.readUInt32LE(20), 4);
});

test('the small replies have their sizes and fields', (t) => {
  const target = dirty();
  t.is(encodeOpened(target, 0, 2 ** 31 - 1, 65), 16);
  t.deepEqual([...target.subarray(0, 16)], [255, 255, 255, 127, 0, 0, 0, 0, 65, 0, 0, 0, 0, 0, 0, 0]);
  t.is(encodeWritten(target, 0, 0x12345678), 8);
  t.deepEqual([...target.subarray(0, 8)], [0x78, 0x56, 0x34, 0x12, 0, 0, 0, 0]);
  t.is(encodeOffset(target, 0, 2 ** 40 + 3), 8);
  t.is(Number(target.readBigUInt64LE(0)), 2 ** 40 + 3);
  t.is(encodeStatistics(target, 0, { blockSize: 4096, blocks: 2 ** 35, blocksFree: 2 ** 34, files: 9 }), 80);
  t.deepEqual(
    [0, 8, 16, 24, 32].map((at) => Number(target.readBigUInt64LE(at))),
    [2 ** 35, 2 ** 34, 2 ** 34, 9, 0],
  );
  t.deepEqual(
    [40, 44, 48].map((at) => target.readUInt32LE(at)),
    [4096, 255, 4096],
  );
});

const KERNEL = { major: 7, minor: 45, maxReadahead: 131072, flags: 0x7fffffff, flags2: 0xff };
const OPTIONS = { kernelCache: false, readOnly: false };

test('negotiate() takes what both know and never ATOMIC_O_TRUNC, WRITEBACK_CACHE or locks', (t) => {
  const reply = negotiate(KERNEL, OPTIONS);
  t.deepEqual(reply, {
    minor: 40,
    maxReadahead: 2 ** 20,
    // ASYNC_READ, BIG_WRITES, ASYNC_DIO, PARALLEL_DIROPS, MAX_PAGES, INIT_EXT
    flags: (1 << 0) | (1 << 5) | (1 << 15) | (1 << 18) | (1 << 22) | (1 << 30),
    flags2: 1 << 4,
  });
  t.is(negotiate({ ...KERNEL, minor: 31, flags: 0 }, OPTIONS)?.flags, 0);
  t.is(negotiate({ ...KERNEL, minor: 31 }, OPTIONS)?.minor, 31);
  t.is(negotiate({ ...KERNEL, maxReadahead: 2 ** 22 }, OPTIONS)?.maxReadahead, 2 ** 22);
  const cached = negotiate(KERNEL, { ...OPTIONS, kernelCache: true });
  t.is((cached?.flags ?? 0) & INIT_FLAG.AUTO_INVAL_DATA, 0);
});

test('negotiate() pretends masked bits away, and with INIT_EXT all of flags2', (t) => {
  const reply = negotiate(KERNEL, { ...OPTIONS, maskInitFlags: INIT_FLAG.INIT_EXT | INIT_FLAG.MAX_PAGES });
  t.is(reply?.flags2, 0);
  t.is((reply?.flags ?? 0) & (INIT_FLAG.INIT_EXT | INIT_FLAG.MAX_PAGES), 0);
});

test('negotiate() refuses protocols older than 7.23; a newer major gets our own version to try again with', (t) => {
  t.is(negotiate({ ...KERNEL, minor: 22 }, OPTIONS), undefined);
  t.is(negotiate({ ...KERNEL, major: 6 }, OPTIONS), undefined);
  t.truthy(negotiate({ ...KERNEL, major: 8, minor: 0 }, OPTIONS));
});

test('encodeInit() lays out struct fuse_init_out', (t) => {
  const target = dirty();
  t.is(encodeInit(target, 0, { minor: 38, maxReadahead: 2 ** 20, flags: 0x40000001, flags2: 16 }), 64);
  t.deepEqual(
    [0, 4, 8, 12].map((at) => target.readUInt32LE(at)),
    [7, 38, 2 ** 20, 0x40000001],
  );
  t.deepEqual(
    [16, 18, 28, 30].map((at) => target.readUInt16LE(at)),
    [65535, 49151, 256, 0],
  );
  t.deepEqual(
    [20, 24, 32].map((at) => target.readUInt32LE(at)),
    [2 ** 20, 1, 16],
  );
  t.true(target.subarray(36, 64).every((byte) => byte === 0));
});

test('fallocateMode() knows the requests that a disk can carry out', (t) => {
  t.deepEqual(
    [0, 1, 3, 0x10, 0x11].map((bits) => fallocateMode(bits)),
    ['allocate', 'allocate', 'punch-hole', 'zero-range', 'zero-range'],
  );
  for (const bits of [2, 8, 0x20, 0x40, 0x13, 4]) t.is(fallocateMode(bits), undefined, String(bits));
});
