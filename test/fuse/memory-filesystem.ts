/**
 * A small `FileSystem` in shared memory for the tests of the sessions: any number of threads may each have an object over one memory.
 *
 *   disk           fixed size, the first half with a pattern, the rest a hole
 *   readonly       what the disk is at first, EROFS for writers
 *   events.json    what happened so far; st_size 0 like /proc
 *   growing.txt    longer than its st_size says
 *   held           a read waits until `release` has been opened
 *   slow           a read takes as long as one that waits for a disk
 *   overlong       a read claims one byte more than was asked for
 *   many/          5,000 names
 *   faults/NAME    every read, write, fsync and size change throws what FAULTS has under that name
 */
import * as assert from 'node:assert';
import * as fs from 'node:fs';
import { BlockError } from '../../src/errors';
import { memfdCreate } from '../../src/system/memfd';
import {
  type DirectoryEntry,
  type FallocateMode,
  type FileAttributes,
  FileError,
  type FileSystem,
  type FileSystemStatistics,
  type OpenedFile,
  type OpenFlags,
} from '../../src/vfs/filesystem';

export const DISK_BYTES = 6 * 1024 * 1024 + 1234;
/** Where the hole begins. */
export const DATA_BYTES = 3 * 1024 * 1024;
export const BLOCK_BYTES = 4096;
export const MANY_NAMES = 5000;
export const GROWN_TEXT = 'longer than the size that stat shows\n';
const DISK_BLOCKS = Math.ceil(DISK_BYTES / BLOCK_BYTES);

/** Names of the counters in events.json. */
export const EVENTS = [
  'opens',
  'releases',
  'reads',
  'writes',
  'syncWrites',
  'fsyncs',
  'setSizes',
  'allocates',
  'punches',
  'zeroes',
  'held',
  'released',
  'prefetches',
  'readsAhead',
] as const;
export type EventName = (typeof EVENTS)[number];
export type EventCounts = Record<EventName, number>;
const COUNTER_BYTES = 256;
const SLOW_MS = 10;
/** Never notified. */
const PAUSE = new Int32Array(new SharedArrayBuffer(4));

const hostError = (code: string): Error => Object.assign(new Error(`${code}: from the host`), { code });

export const FAULTS: Record<string, { errno: string; isBug?: boolean; throwIt(): never }> = {
  'io-without-cause': { errno: 'EIO', throwIt: () => thrown(new BlockError('IO', 'Cannot read "a"')) },
  'io-quota': {
    errno: 'EDQUOT',
    throwIt: () => thrown(new BlockError('IO', 'Cannot read "a"', { cause: hostError('EDQUOT') })),
  },
  // ENOSYS would switch the operation off for good.
  'io-not-implemented': {
    errno: 'EIO',
    throwIt: () => thrown(new BlockError('IO', 'Cannot read "a"', { cause: hostError('ENOSYS') })),
  },
  corrupt: { errno: 'EIO', throwIt: () => thrown(new BlockError('CORRUPT_IMAGE', 'L2 entry 0x1')) },
  full: { errno: 'ENOSPC', throwIt: () => thrown(new BlockError('NO_SPACE', 'no room')) },
  busy: { errno: 'EBUSY', throwIt: () => thrown(new BlockError('BUSY', 'busy')) },
  'file-error': { errno: 'EFBIG', throwIt: () => thrown(new FileError('EFBIG')) },
  'raw-host-error': { errno: 'ENXIO', throwIt: () => thrown(hostError('ENXIO')) },
  assertion: {
    errno: 'EIO',
    isBug: true,
    throwIt: () => thrown(new assert.AssertionError({ message: 'must not be' })),
  },
  'type-error': { errno: 'EIO', isBug: true, throwIt: () => thrown(new TypeError('undefined is not a function')) },
  text: { errno: 'EIO', isBug: true, throwIt: () => thrown('not even an Error') },
};

function thrown(error: unknown): never {
  throw error;
}

/** The byte of the disk at `offset` as it is at first. */
export function patternByte(offset: number): number {
  return offset < DATA_BYTES ? 1 + ((offset * 31 + Math.floor(offset / 4096) * 7) % 251) : 0;
}

/** One block past the hole that is allocated, though it reads zero. */
export const ISLAND = 5 * 1024 * 1024;

/** One disk: whether each block is allocated, one byte each, then the bytes. */
interface Content {
  allocated: Uint8Array;
  data: Uint8Array;
}

function contentAt(memory: SharedArrayBuffer, index: number): Content {
  const start = COUNTER_BYTES + index * (DISK_BLOCKS + DISK_BYTES);
  return {
    allocated: new Uint8Array(memory, start, DISK_BLOCKS),
    data: new Uint8Array(memory, start + DISK_BLOCKS, DISK_BYTES),
  };
}

/** A new memory: counters, the disk, the read-only copy of what it was. */
export function createMemory(): SharedArrayBuffer {
  const memory = new SharedArrayBuffer(COUNTER_BYTES + 2 * (DISK_BLOCKS + DISK_BYTES));
  for (const { allocated, data } of [contentAt(memory, 0), contentAt(memory, 1)]) {
    allocated.fill(1, 0, DATA_BYTES / BLOCK_BYTES);
    allocated[ISLAND / BLOCK_BYTES] = 1;
    for (let offset = 0; offset < DATA_BYTES; offset++) data[offset] = patternByte(offset);
  }
  return memory;
}

const INO = {
  ROOT: 1,
  DISK: 2,
  READONLY: 3,
  EVENTS: 4,
  GROWING: 5,
  HELD: 6,
  RELEASE: 7,
  MANY: 8,
  FAULTS: 9,
  OVERLONG: 10,
  SLOW: 11,
};
const FIRST_FAULT = 100;
const FIRST_OF_MANY = 10_000;
const FAULT_NAMES = Object.keys(FAULTS);

const ROOT_ENTRIES: DirectoryEntry[] = [
  { name: 'disk', ino: INO.DISK, kind: 'file' },
  { name: 'readonly', ino: INO.READONLY, kind: 'file' },
  { name: 'events.json', ino: INO.EVENTS, kind: 'file' },
  { name: 'growing.txt', ino: INO.GROWING, kind: 'file' },
  { name: 'held', ino: INO.HELD, kind: 'file' },
  { name: 'release', ino: INO.RELEASE, kind: 'file' },
  { name: 'slow', ino: INO.SLOW, kind: 'file' },
  { name: 'overlong', ino: INO.OVERLONG, kind: 'file' },
  { name: 'many', ino: INO.MANY, kind: 'directory' },
  { name: 'faults', ino: INO.FAULTS, kind: 'directory' },
];

export class MemoryFileSystem implements FileSystem {
  readonly rootIno = INO.ROOT;
  private readonly counters: Int32Array;
  private readonly disk: Content;
  private readonly copy: Content;
  private readonly lists = new Map<number, DirectoryEntry[]>([
    [INO.ROOT, ROOT_ENTRIES],
    [INO.FAULTS, FAULT_NAMES.map((name, index) => ({ name, ino: FIRST_FAULT + index, kind: 'file' }))],
    [
      INO.MANY,
      Array.from({ length: MANY_NAMES }, (_, index) => ({
        name: nameOfMany(index),
        ino: FIRST_OF_MANY + index,
        kind: 'file',
      })),
    ],
  ]);

  constructor(memory: SharedArrayBuffer) {
    this.counters = new Int32Array(memory, 0, EVENTS.length);
    this.disk = contentAt(memory, 0);
    this.copy = contentAt(memory, 1);
  }

  lookup(parent: number, name: string): number {
    const found = this.list(parent).find((entry) => entry.name === name);
    if (found === undefined) throw new FileError('ENOENT');
    return found.ino;
  }

  attributes(ino: number): FileAttributes {
    const isDirectory = this.lists.has(ino);
    const isDisk = ino === INO.DISK || ino === INO.READONLY;
    const size = isDisk ? DISK_BYTES : ino >= FIRST_FAULT ? BLOCK_BYTES : ino === INO.GROWING ? 5 : 0;
    return {
      ino,
      kind: isDirectory ? 'directory' : 'file',
      mode: isDirectory ? 0o755 : 0o644,
      uid: process.getuid?.() ?? 0,
      gid: process.getgid?.() ?? 0,
      nlink: isDirectory ? 2 : 1,
      size,
      blocks: isDisk ? this.content(ino).allocated.reduce((sum, block) => sum + block, 0) * (BLOCK_BYTES / 512) : 0,
      blksize: isDisk ? 65536 : BLOCK_BYTES,
      atimeMs: 1_000_000_000_123,
      mtimeMs: 1_100_000_000_456,
      ctimeMs: 1_200_000_000_789,
      isDisk,
    };
  }

  list(ino: number): DirectoryEntry[] {
    const entries = this.lists.get(ino);
    if (entries === undefined) throw new FileError('ENOTDIR');
    return entries;
  }

  open(ino: number, flags: OpenFlags): OpenedFile {
    if (this.lists.has(ino)) throw new FileError('EISDIR');
    const isText = ino === INO.EVENTS || ino === INO.GROWING;
    if (flags.write && (isText || ino === INO.READONLY)) throw new FileError('EROFS');
    if (ino === INO.RELEASE) this.letGo();
    if (!isText) this.count('opens');
    return { handle: isText ? this.makeText(ino) : 0, isDisk: !isText };
  }

  release(ino: number, handle: number): void {
    if (ino === INO.EVENTS || ino === INO.GROWING) fs.closeSync(handle);
    else this.count('releases');
  }

  read(ino: number, handle: number, offset: number, target: Uint8Array, at: number, length: number): number {
    if (ino === INO.EVENTS || ino === INO.GROWING) return fs.readSync(handle, target, at, length, offset);
    this.throwFault(ino);
    if (ino === INO.OVERLONG) return length + 1;
    if (ino === INO.HELD) this.waitForRelease();
    if (ino === INO.SLOW) Atomics.wait(PAUSE, 0, 0, SLOW_MS);
    this.count('reads');
    const got = Math.max(0, Math.min(length, DISK_BYTES - offset));
    target.set(this.content(ino).data.subarray(offset, offset + got), at);
    return got;
  }

  holding(_ino: number, body: () => void): void {
    body();
  }

  locate(): boolean {
    return false;
  }

  countReads(): void {}

  prefetch(): void {
    const reads = Atomics.load(this.counters, EVENTS.indexOf('reads'));
    this.count('prefetches');
    // More than one at a time: reads were taken together.
    if (Atomics.load(this.counters, EVENTS.indexOf('prefetches')) > reads + 1) this.count('readsAhead');
  }

  write(
    ino: number,
    _handle: number,
    offset: number,
    source: Uint8Array,
    at: number,
    length: number,
    sync: boolean,
  ): number {
    this.throwFault(ino);
    if (offset >= DISK_BYTES) throw new FileError('ENOSPC');
    const written = Math.min(length, DISK_BYTES - offset);
    this.disk.data.set(source.subarray(at, at + written), offset);
    this.mark(offset, written, 1, 'touched');
    this.count('writes');
    if (sync) this.count('syncWrites');
    return written;
  }

  fsync(ino: number): void {
    this.throwFault(ino);
    this.count('fsyncs');
  }

  setSize(ino: number, size: number): void {
    this.throwFault(ino);
    this.count('setSizes');
    if (ino !== INO.DISK) throw new FileError('EROFS');
    if (size > DISK_BYTES) throw new FileError('EPERM');
  }

  fallocate(
    ino: number,
    _handle: number,
    mode: FallocateMode,
    keepSize: boolean,
    offset: number,
    length: number,
  ): void {
    this.throwFault(ino);
    const end = Math.min(offset + length, DISK_BYTES);
    if (offset + length > DISK_BYTES && !keepSize) throw new BlockError('OUT_OF_BOUNDS', 'past the end of the disk');
    if (mode !== 'allocate') this.disk.data.fill(0, offset, end);
    if (mode === 'punch-hole') this.mark(offset, end - offset, 0, 'whole');
    else this.mark(offset, end - offset, 1, 'touched');
    this.count(mode === 'allocate' ? 'allocates' : mode === 'punch-hole' ? 'punches' : 'zeroes');
  }

  seek(ino: number, _handle: number, offset: number, what: 'data' | 'hole'): number {
    if (offset >= DISK_BYTES) throw new FileError('ENXIO');
    const { allocated } = this.content(ino);
    const wanted = what === 'data' ? 1 : 0;
    let block = Math.floor(offset / BLOCK_BYTES);
    while (block < DISK_BLOCKS && allocated[block] !== wanted) block++;
    if (block === DISK_BLOCKS && what === 'data') throw new FileError('ENXIO');
    return Math.max(offset, Math.min(block * BLOCK_BYTES, DISK_BYTES));
  }

  statistics(): FileSystemStatistics {
    return { blockSize: BLOCK_BYTES, blocks: 2 ** 33, blocksFree: 2 ** 32 + 5, files: 17 };
  }

  makeDirectory(): number {
    throw new FileError('EPERM');
  }

  removeDirectory(): void {
    throw new FileError('EPERM');
  }

  rename(): void {
    throw new FileError('EPERM');
  }

  private content(ino: number): Content {
    return ino === INO.READONLY ? this.copy : this.disk;
  }

  private throwFault(ino: number): void {
    if (ino >= FIRST_FAULT && ino < FIRST_FAULT + FAULT_NAMES.length) FAULTS[FAULT_NAMES[ino - FIRST_FAULT]].throwIt();
  }

  private makeText(ino: number): number {
    const fd = memfdCreate('imagefs test');
    const counts = Object.fromEntries(EVENTS.map((name, index) => [name, Atomics.load(this.counters, index)]));
    fs.writeSync(fd, ino === INO.EVENTS ? `${JSON.stringify(counts)}\n` : GROWN_TEXT, 0);
    return fd;
  }

  private waitForRelease(): void {
    const index = EVENTS.indexOf('released');
    this.count('held');
    while (Atomics.load(this.counters, index) === 0) Atomics.wait(this.counters, index, 0);
  }

  private letGo(): void {
    this.count('released');
    Atomics.notify(this.counters, EVENTS.indexOf('released'));
  }

  private mark(offset: number, length: number, value: number, which: 'touched' | 'whole'): void {
    const round = which === 'touched' ? [Math.floor, Math.ceil] : [Math.ceil, Math.floor];
    const last = offset + length === DISK_BYTES ? DISK_BLOCKS : round[1]((offset + length) / BLOCK_BYTES);
    this.disk.allocated.fill(value, round[0](offset / BLOCK_BYTES), last);
  }

  private count(event: EventName): void {
    Atomics.add(this.counters, EVENTS.indexOf(event), 1);
  }
}

export function nameOfMany(index: number): string {
  return `name-${String(index).padStart(5, '0')}-\u00fc`;
}
