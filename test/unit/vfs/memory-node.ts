/** A block node in memory, with clusters and a backing node, that writes down what it is asked to do. */

import type { BlockNode, BlockNodeStatistics, BlockStatus } from '../../../src/block/node';
import { BlockError } from '../../../src/errors';

export interface MemoryNodeOptions {
  size: number;
  clusterSize?: number;
  backing?: BlockNode;
  readOnly?: boolean;
  path?: string;
}

type Cluster = { kind: 'data'; bytes: Uint8Array } | { kind: 'zero' };

export class MemoryNode implements BlockNode {
  readonly format = 'memory';
  readonly path: string;
  readonly readOnly: boolean;
  readonly clusterSize: number;
  readonly backing: BlockNode | undefined;
  /** One line for each call that changes something or makes it durable: `write 0 512`. */
  readonly calls: string[] = [];
  /** Throws from the calls whose line it matches. */
  failing: { pattern: RegExp; error: Error } | undefined;
  /** Runs before a resize; stands for another thread. */
  beforeResize: (() => void) | undefined;
  private bytes: number;
  private readonly clusters = new Map<number, Cluster>();
  private readonly counted = { readBytes: 0, readOperations: 0, writeBytes: 0, writeOperations: 0, flushOperations: 0 };

  constructor(options: MemoryNodeOptions) {
    this.bytes = options.size;
    this.clusterSize = options.clusterSize ?? 4096;
    this.backing = options.backing;
    this.readOnly = options.readOnly ?? false;
    this.path = options.path ?? '/images/memory.img';
  }

  size(): number {
    return this.bytes;
  }

  read(offset: number, target: Uint8Array, at: number, length: number): void {
    this.begin('read', offset, length);
    this.counted.readBytes += length;
    this.counted.readOperations += 1;
    this.pieces(offset, length, (index, inside, count, done) => {
      const cluster = this.clusters.get(index);
      const view = target.subarray(at + done, at + done + count);
      view.fill(0);
      if (cluster?.kind === 'data') view.set(cluster.bytes.subarray(inside, inside + count));
      else if (cluster === undefined) this.readBacking(offset + done, view);
    });
  }

  holding(body: () => void): void {
    body();
  }

  locate(): boolean {
    return false;
  }

  countReads(): void {}

  prefetch(): void {}

  write(offset: number, source: Uint8Array, at: number, length: number): void {
    this.begin('write', offset, length);
    this.counted.writeBytes += length;
    this.counted.writeOperations += 1;
    this.pieces(offset, length, (index, inside, count, done) => {
      this.dataCluster(index).set(source.subarray(at + done, at + done + count), inside);
    });
  }

  writeZeroes(offset: number, length: number): void {
    this.begin('writeZeroes', offset, length);
    this.pieces(offset, length, (index, inside, count) => {
      if (count === this.clusterSize) this.clusters.set(index, { kind: 'zero' });
      else this.dataCluster(index).fill(0, inside, inside + count);
    });
  }

  allocate(offset: number, length: number): void {
    this.begin('allocate', offset, length);
    this.pieces(offset, length, (index) => {
      this.dataCluster(index);
    });
  }

  flush(): void {
    this.counted.flushOperations += 1;
    this.note('flush');
  }

  resize(size: number): void {
    this.beforeResize?.();
    this.note(`resize ${size}`);
    if (size < this.bytes) throw new BlockError('OUT_OF_BOUNDS', `Cannot shrink from ${this.bytes} to ${size}`);
    this.bytes = size;
  }

  status(offset: number, length: number): BlockStatus {
    const own = this.layerStatus(offset, length);
    if (own.present) return own;
    const below = this.backing;
    if (below === undefined || offset >= below.size()) return { ...own, zero: true };
    const status = below.status(offset, Math.min(own.length, below.size() - offset));
    return { ...status, depth: status.depth + 1 };
  }

  layerStatus(offset: number, length: number): BlockStatus {
    const kind = this.clusters.get(Math.floor(offset / this.clusterSize))?.kind;
    const run = Math.min(length, this.clusterSize - (offset % this.clusterSize));
    return { length: run, depth: 0, present: kind !== undefined, zero: kind === 'zero', data: kind === 'data' };
  }

  allocatedBytes(): number {
    return [...this.clusters.values()].filter(({ kind }) => kind === 'data').length * this.clusterSize;
  }

  statistics(): BlockNodeStatistics {
    return {
      ...this.counted,
      unmapBytes: 0,
      unmapOperations: 0,
      failedReadOperations: 0,
      failedWriteOperations: 0,
      failedFlushOperations: 0,
      writeHighestOffset: 0,
    };
  }

  private begin(what: string, offset: number, length: number): void {
    this.note(`${what} ${offset} ${length}`);
    if (offset < 0 || offset + length > this.bytes)
      throw new BlockError('OUT_OF_BOUNDS', `${what} ${offset} ${length}`);
  }

  private note(call: string): void {
    if (!call.startsWith('read ')) this.calls.push(call);
    if (this.failing?.pattern.test(call)) throw this.failing.error;
  }

  private readBacking(offset: number, view: Uint8Array): void {
    const inside = Math.min(view.length, (this.backing?.size() ?? 0) - offset);
    if (inside > 0) this.backing?.read(offset, view, 0, inside);
  }

  private dataCluster(index: number): Uint8Array {
    const found = this.clusters.get(index);
    if (found?.kind === 'data') return found.bytes;
    const bytes = new Uint8Array(this.clusterSize);
    if (found === undefined) this.readBacking(index * this.clusterSize, bytes);
    this.clusters.set(index, { kind: 'data', bytes });
    return bytes;
  }

  private pieces(
    offset: number,
    length: number,
    visit: (index: number, inside: number, count: number, done: number) => void,
  ): void {
    for (let done = 0; done < length; ) {
      const inside = (offset + done) % this.clusterSize;
      const count = Math.min(length - done, this.clusterSize - inside);
      visit((offset + done - inside) / this.clusterSize, inside, count, done);
      done += count;
    }
  }
}

/** Bytes that differ from place to place and from seed to seed, and are never zero. */
export function pattern(length: number, seed: number): Uint8Array {
  return Uint8Array.from({ length }, (_, index) => 1 + ((index * 7 + seed * 31 + Math.floor(index / 251)) % 255));
}
