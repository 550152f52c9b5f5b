/**
 * One L1 table with the L2 tables that it names, as they are in the file: what snapshots share and give up is counted by
 * walking through it. Nobody changes the tables meanwhile, and none differs from the file.
 */
import { type BlockError, hex } from '../../errors';
import type { Storage } from '../../storage/storage';
import { MIB } from '../../units';
import { TableError } from '../driver';
import { compressedBytes, compressedOffset, isCompressed, offsetOf } from './entry';
import type { Qcow2Header } from './layout';

/** Tables that lie together are read together, up to so many bytes. */
const READ_AT_ONCE = MIB;

/** Clusters in a row; each is referred to once more. */
export interface ClusterRun {
  first: number;
  count: number;
}

export class TableTree {
  /** The L1 table. */
  readonly l1: Buffer;
  private readonly entryBytes: number;

  constructor(
    private readonly header: Qcow2Header,
    private readonly storage: Storage,
    /** End of the clusters of the file: nothing lies behind. */
    private readonly fileEnd: number,
    readonly l1Offset: number,
    l1Entries: number,
  ) {
    this.entryBytes = header.extendedL2 ? 16 : 8;
    this.l1 = Buffer.alloc(l1Entries * 8);
    if (l1Entries > 0) storage.read(l1Offset, this.l1, 0, this.l1.length);
  }

  /** Its clusters itself, those of the L1 table. */
  ownClusters(): ClusterRun {
    const { clusterSize } = this.header;
    return { first: this.l1Offset / clusterSize, count: Math.ceil(this.l1.length / clusterSize) };
  }

  /**
   * L2 tables in the order of the L1 table. `bytes` is `visit`'s until it returns.
   * @param broken told about an entry that names nothing which can be a table, which is left out then
   */
  *tables(broken: (error: BlockError) => void): Generator<{ offset: number; bytes: Buffer }> {
    const { l1, storage } = this;
    const { clusterSize } = this.header;
    let buffer = Buffer.alloc(0);
    for (let at = 0; at < l1.length; ) {
      const offset = offsetOf(l1.readUInt32BE(at), l1.readUInt32BE(at + 4));
      if (offset === 0) {
        at += 8;
        continue;
      }
      if (!this.isCluster(offset)) {
        broken(this.corrupt(`L2 table at ${hex(offset)}`));
        at += 8;
        continue;
      }
      let count = 1;
      for (; at + count * 8 < l1.length && (count + 1) * clusterSize <= READ_AT_ONCE; count++) {
        const next = offsetOf(l1.readUInt32BE(at + count * 8), l1.readUInt32BE(at + count * 8 + 4));
        if (next !== offset + count * clusterSize || !this.isCluster(next)) break;
      }
      if (buffer.length < count * clusterSize) buffer = Buffer.alloc(count * clusterSize);
      storage.read(offset, buffer, 0, count * clusterSize);
      for (let i = 0; i < count; i++) {
        const from = i * clusterSize;
        yield { offset: offset + from, bytes: buffer.subarray(from, from + clusterSize) };
      }
      at += count * 8;
    }
  }

  /** Every reference to a cluster, those to the L2 tables included; always in the same order. */
  *references(broken: (error: BlockError) => void): Generator<ClusterRun> {
    const { clusterSize } = this.header;
    let run: ClusterRun = { first: 0, count: 0 };
    for (const { offset, bytes } of this.tables(broken)) {
      if (run.count > 0) yield run;
      run = { first: offset / clusterSize, count: 1 };
      for (let at = 0; at < clusterSize; at += this.entryBytes) {
        const next = this.named(bytes.readUInt32BE(at), bytes.readUInt32BE(at + 4), broken);
        if (next === undefined) continue;
        if (next.first === run.first + run.count) {
          run.count += next.count;
          continue;
        }
        yield run;
        run = next;
      }
    }
    if (run.count > 0) yield run;
  }

  /** What one L2 entry refers to. A place that is kept for zeroes is a reference, too. */
  private named(high: number, low: number, broken: (error: BlockError) => void): ClusterRun | undefined {
    if (high === 0 && low === 0) return undefined;
    const { clusterSize } = this.header;
    if (isCompressed(high)) {
      const bits = Math.log2(clusterSize);
      const offset = compressedOffset(high, low, bits);
      const first = Math.floor(offset / clusterSize);
      const last = Math.floor((offset + compressedBytes(high, low, bits) - 1) / clusterSize);
      // The stream of the last cluster may say more sectors than the file has.
      if (first > 0 && offset < this.fileEnd) {
        return { first, count: Math.min(last, this.fileEnd / clusterSize - 1) - first + 1 };
      }
      broken(this.corrupt(`compressed data at ${hex(offset)}`));
      return undefined;
    }
    const offset = offsetOf(high, low);
    if (offset === 0) return undefined;
    if (this.isCluster(offset)) return { first: offset / clusterSize, count: 1 };
    broken(this.corrupt(`cluster at ${hex(offset)}`));
    return undefined;
  }

  private isCluster(offset: number): boolean {
    const { clusterSize } = this.header;
    return offset % clusterSize === 0 && offset >= clusterSize && offset + clusterSize <= this.fileEnd;
  }

  private corrupt(what: string): TableError {
    const { path } = this.storage;
    const allowed = `[${hex(this.header.clusterSize)}, ${hex(this.fileEnd)})`;
    const problem = `${what} is not a cluster in ${allowed}; run "imagefs check"`;
    return new TableError(`Cannot follow the tables of qcow2 image "${path}": ${problem}`, path);
  }
}
