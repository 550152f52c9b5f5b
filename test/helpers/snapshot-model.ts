/** A disk and its snapshots as arrays of bytes, and random programs over both. */
import type { BlockNode } from '../../src/block/node';
import {
  deleteSnapshot,
  listSnapshots,
  openSnapshot,
  renameSnapshot,
  revertToSnapshot,
  takeSnapshot,
} from '../../src/block/snapshots';
import { Scratch } from './model';
import { patternBytes, type Random, squeezableBytes } from './random';

export interface ModelSnapshot {
  id: string;
  name: string;
  bytes: Uint8Array;
}

/** The disk and its snapshots at one moment. */
export interface Moment {
  live: Uint8Array;
  snapshots: ModelSnapshot[];
}

export interface ModelOptions {
  cluster: number;
  /** Most snapshots at once. */
  most: number;
  /** May the disk grow? */
  grows: boolean;
  /** Counts are too narrow for what several compressed clusters and a snapshot share. */
  plain?: boolean;
}

export class SnapshotModel {
  live: Uint8Array;
  snapshots: ModelSnapshot[] = [];
  private tag = 0;

  constructor(
    public node: BlockNode,
    private readonly random: Random,
    private readonly options: ModelOptions,
  ) {
    this.live = contentOf(node);
    for (const { id, name } of listSnapshots(node)) {
      this.snapshots.push({ id, name, bytes: contentOf(openSnapshot(node, id)) });
    }
  }

  /** One operation on both. @returns its name */
  step(): string {
    const { random, snapshots, options } = this;
    const what = random.below(100);
    if (what < 15) return options.plain === true ? this.write() : this.compress();
    if (what < 50) return this.write();
    if (what < 70) return this.zero();
    if (what < 78) {
      this.node.flush();
      return 'flush';
    }
    if (what < 86) return snapshots.length < options.most ? this.take() : this.delete();
    if (what < 91) return this.delete();
    if (what < 94) return this.revert();
    if (what < 97) return this.rename();
    return options.grows ? this.grow() : this.write();
  }

  take(): string {
    const name = this.random.pick(['', 'daily', 'ünïcode', `s${this.tag++}`]);
    const { id } = takeSnapshot(this.node, name);
    this.snapshots.push({ id, name, bytes: this.live.slice() });
    return `take ${id}`;
  }

  delete(): string {
    if (this.snapshots.length === 0) return 'nothing';
    const [{ id }] = this.snapshots.splice(this.random.below(this.snapshots.length), 1);
    deleteSnapshot(this.node, id);
    return `delete ${id}`;
  }

  revert(): string {
    if (this.snapshots.length === 0) return 'nothing';
    const { id, bytes } = this.random.pick(this.snapshots);
    revertToSnapshot(this.node, id);
    this.live = bytes.slice();
    return `revert ${id}`;
  }

  rename(): string {
    if (this.snapshots.length === 0) return 'nothing';
    const snapshot = this.random.pick(this.snapshots);
    // Names of very different lengths: the table needs more clusters, or fewer.
    snapshot.name = `n${this.tag++}`.repeat(this.random.between(1, 50)).slice(0, 255);
    renameSnapshot(this.node, snapshot.id, snapshot.name);
    return `rename ${snapshot.id}`;
  }

  /** What differs; undefined: nothing. */
  problem(node: BlockNode = this.node): string | undefined {
    return problemOf(node, this);
  }

  private range(): { offset: number; length: number } {
    const { random, options, live } = this;
    const most = random.chance(0.5) ? 3000 : 4 * options.cluster;
    let offset = random.below(live.length);
    if (random.chance(0.4)) offset -= offset % options.cluster;
    const length = Math.min(random.between(1, most), live.length - offset);
    return { offset, length };
  }

  write(): string {
    const { offset, length } = this.range();
    const bytes = patternBytes(offset, length, this.tag++);
    this.node.write(offset, bytes, 0, length);
    this.live.set(bytes, offset);
    return `write ${offset}+${length}`;
  }

  private compress(): string {
    const { clusterSize } = this.node;
    const { offset, length } = this.range();
    const from = offset - (offset % clusterSize);
    const count = Math.min(this.live.length, Math.ceil((offset + length) / clusterSize) * clusterSize) - from;
    const bytes = squeezableBytes(from, count, this.tag++);
    this.node.write(from, bytes, 0, count, { compressed: true });
    this.live.set(bytes, from);
    return `compress ${from}+${count}`;
  }

  private zero(): string {
    const { offset, length } = this.range();
    this.node.writeZeroes(offset, length);
    this.live.fill(0, offset, offset + length);
    return `zero ${offset}+${length}`;
  }

  private grow(): string {
    const larger = new Uint8Array(this.live.length + 512 * this.random.between(1, 100));
    larger.set(this.live);
    this.node.resize(larger.length);
    this.live = larger;
    return `grow ${larger.length}`;
  }
}

/** How an image and its snapshots differ from what they should hold; undefined: not at all. */
export function problemOf(node: BlockNode, { live, snapshots }: Moment): string | undefined {
  const differs = differenceOf(node, live);
  if (differs !== undefined) return `the disk: ${differs}`;
  const found = listSnapshots(node).map(({ id, name, virtualSize }) => ({ id, name, virtualSize }));
  const expected = snapshots.map(({ id, name, bytes }) => ({ id, name, virtualSize: bytes.length }));
  if (JSON.stringify(found) !== JSON.stringify(expected)) {
    return `the list is ${JSON.stringify(found)}, expected ${JSON.stringify(expected)}`;
  }
  for (const { id, bytes } of snapshots) {
    const wrong = differenceOf(openSnapshot(node, id), bytes);
    if (wrong !== undefined) return `snapshot ${id}: ${wrong}`;
  }
  return undefined;
}

const FOUND = new Scratch();

function differenceOf(node: BlockNode, expected: Uint8Array): string | undefined {
  return firstDifference(readInto(node, FOUND.takeUnread(node.size())), expected);
}

export function contentOf(node: BlockNode): Uint8Array {
  return readInto(node, new Uint8Array(node.size()));
}

function readInto(node: BlockNode, bytes: Uint8Array): Uint8Array {
  node.read(0, bytes, 0, bytes.length);
  return bytes;
}

export function firstDifference(found: Uint8Array, expected: Uint8Array): string | undefined {
  if (found.length !== expected.length) return `${found.length} bytes, expected ${expected.length}`;
  if (Buffer.compare(found, expected) === 0) return undefined;
  const at = found.findIndex((byte, index) => byte !== expected[index]);
  return `byte ${at} is ${found[at]}, expected ${expected[at]}`;
}
