/** Runs that write to a disk, with what must be there after a power cut at each moment. */
import type { ImageNode } from '../../src/block/image-node';
import { maintain } from '../../src/block/open';
import type { RecordedOperation } from '../../src/storage/recording';
import { firstImpossible, type Perhaps, Scratch } from '../helpers/model';
import type { FileState } from '../helpers/power-cut';
import { patternBytes, type Random, squeezableBytes } from '../helpers/random';
import { type CrashFiles, type CrashImage, makeFiles, openFiles, statesOf } from './images';

/** What the program asked of the disk; `from` and `to`: length of the log before and after. */
export interface Step extends Perhaps {
  from: number;
  to: number;
}

/** A moment at which a flush returned. */
export interface Promised {
  /** Length of the log when it returned. */
  to: number;
  /** Steps before it. */
  steps: number;
  disk: Uint8Array;
}

export interface DiskRun {
  image: CrashImage;
  files: CrashFiles;
  starts: FileState[];
  log: RecordedOperation[];
  steps: Step[];
  promised: Promised[];
}

export type Program = (disk: RecordedDisk, random: Random) => void;

/** A disk beside a copy of it; what it is asked is noted. */
export class RecordedDisk {
  readonly log: RecordedOperation[] = [];
  readonly steps: Step[] = [];
  readonly promised: Promised[] = [];
  private readonly chain;
  private readonly node: ImageNode;
  private disk: Uint8Array;
  private tag = 1;

  constructor(
    readonly image: CrashImage,
    files: CrashFiles,
  ) {
    this.chain = openFiles(files, this.log);
    this.node = this.chain.node;
    this.disk = new Uint8Array(this.node.size());
    this.node.read(0, this.disk, 0, this.disk.length);
    this.promise();
  }

  get size(): number {
    return this.disk.length;
  }

  write(offset: number, length: number): void {
    const count = Math.min(length, this.size - offset);
    const bytes = patternBytes(offset, count, this.tag++);
    this.step(offset, bytes, () => this.node.write(offset, bytes, 0, count));
  }

  /** The clusters that the range touches, compressed. */
  compress(offset: number, length: number): void {
    const { cluster } = this.image;
    const from = offset - (offset % cluster);
    const count = Math.min(this.size, Math.ceil((offset + length) / cluster) * cluster) - from;
    const bytes = squeezableBytes(from, count, this.tag++);
    this.step(from, bytes, () => this.node.write(from, bytes, 0, count, { compressed: true }));
  }

  zero(offset: number, length: number): void {
    const count = Math.min(length, this.size - offset);
    this.step(offset, new Uint8Array(count), () => this.node.writeZeroes(offset, count));
  }

  allocate(offset: number, length: number): void {
    const count = Math.min(length, this.size - offset);
    this.step(offset, new Uint8Array(0), () => this.node.allocate(offset, count));
  }

  grow(by: number): void {
    const before = this.size;
    const larger = new Uint8Array(before + by);
    larger.set(this.disk);
    this.disk = larger;
    this.step(before, new Uint8Array(by), () => this.node.resize(before + by));
  }

  flush(): void {
    this.node.flush();
    this.promise();
  }

  /** What the flusher does when an hour has gone by. */
  maintain(): void {
    maintain(this.node, Date.now() + 3_600_000);
  }

  finish(): void {
    this.chain.finish();
    this.promise();
  }

  private promise(): void {
    this.promised.push({ to: this.log.length, steps: this.steps.length, disk: this.disk.slice() });
  }

  private step(offset: number, bytes: Uint8Array, body: () => void): void {
    const from = this.log.length;
    body();
    this.steps.push({ from, to: this.log.length, offset, bytes });
    this.disk.set(bytes, offset);
  }
}

/** Prepares an image and records what the program does to it. */
export function recordDisk(image: CrashImage, prepare: Program, program: Program, random: Random): DiskRun {
  const files = makeFiles(image);
  const before = new RecordedDisk(image, files);
  prepare(before, random);
  before.finish();
  const starts = statesOf(files);
  const disk = new RecordedDisk(image, files);
  program(disk, random);
  disk.finish();
  const { log, steps, promised } = disk;
  return { image, files, starts, log, steps, promised };
}

const FOUND = new Scratch();
const EXPECTED = new Scratch();

/** The disk after a cut is what was flushed, but for what was asked for since, each byte by itself. @returns what is wrong */
export function compareDisk({ promised, steps }: DiskRun, node: ImageNode, given: number): string | undefined {
  let last = promised[0];
  for (const candidate of promised) if (candidate.to <= given) last = candidate;
  const later = steps.slice(last.steps).filter((step) => step.from <= given);
  const size = node.size();
  const sizes = [last.disk.length, ...later.map((step) => step.offset + step.bytes.length)];
  if (!sizes.includes(size) || size < last.disk.length) return `size ${size} was never asked for`;
  const found = FOUND.takeUnread(size);
  node.read(0, found, 0, size);
  const expected = EXPECTED.take(size).fill(0, last.disk.length);
  expected.set(last.disk);
  const at = firstImpossible(found, expected, later);
  return at < 0
    ? undefined
    : `byte ${at} reads ${found[at]}, was ${last.disk[at] ?? 0} at the last flush, and nobody wrote that`;
}
