/** One walk over all tables of a QED image: which clusters are used, how often, and what is wrong. Writes nothing. */
import { BlockError, describeHostError, hex } from '../../errors';
import type { Storage } from '../../storage/storage';
import type { CheckMessages } from '../check-messages';
import type { ClusterBitmap } from './cluster-bitmap';
import { QED_ENTRY_BYTES, QED_ZERO_CLUSTER, type QedHeader } from './header';

/** Bytes of a table that are in memory at once: two of them, of the L1 table and of an L2 table. */
const SLICE_BYTES = 64 * 1024;
/** Clusters used twice that are remembered; ours. With more than these nothing is repaired. */
const DOUBLED_MAX = 65536;
const TWO_32 = 2 ** 32;

export interface HostRun {
  offset: number;
  length: number;
}

export class QedScan {
  /** Clusters that somebody uses. */
  readonly used: ClusterBitmap;
  /** Entries that point to no possible place, and clusters used twice. */
  corruptions = 0;
  /** The first kind alone. */
  invalidEntries = 0;
  readErrors = 0;
  leaks = 0;
  leaksAtEnd = 0;
  allocatedClusters = 0;
  fragmentedClusters = 0;
  /** Called for an entry that points to no possible place, with its own host offset and that of its table. */
  onInvalidEntry: (entryOffset: number, tableOffset: number) => void = () => {};

  readonly #header: QedHeader;
  readonly #storage: Storage;
  readonly #messages: CheckMessages;
  readonly #headerEnd: number;
  readonly #tableBytes: number;
  /** End of the last whole cluster of the file. */
  readonly #fileEnd: number;
  readonly #doubled = new Set<number>();

  constructor(header: QedHeader, storage: Storage, bitmap: ClusterBitmap, messages: CheckMessages) {
    this.#header = header;
    this.#storage = storage;
    this.used = bitmap;
    this.#messages = messages;
    this.#headerEnd = header.headerSize * header.clusterSize;
    this.#tableBytes = header.tableSize * header.clusterSize;
    this.#fileEnd = bitmap.length * header.clusterSize;
  }

  /** Every table could be read: what nobody uses is really unused. */
  get complete(): boolean {
    return this.readErrors === 0;
  }

  run(): void {
    const { headerSize, l1TableOffset, tableSize, clusterSize } = this.#header;
    for (let cluster = 0; cluster < headerSize; cluster++) this.used.add(cluster);
    this.#claim(l1TableOffset / clusterSize, tableSize);
    this.#eachEntry(l1TableOffset, 'L1 table', (low, high, index, at) => this.#checkL1Entry(low, high, index, at));
    // With a table unread, clusters that it names would look unused.
    if (this.complete) this.#countLeaks();
  }

  /** False for a table of which a cluster is used twice. */
  mayRepairTable(tableOffset: number): boolean {
    if (this.#doubled.size >= DOUBLED_MAX) return false;
    const first = tableOffset / this.#header.clusterSize;
    for (let cluster = first; cluster < first + this.#header.tableSize; cluster++) {
      if (this.#doubled.has(cluster)) return false;
    }
    return true;
  }

  /** Runs of leaked clusters, in order; valid after `run`. */
  *leakedRuns(): Generator<HostRun> {
    const { clusterSize } = this.#header;
    const end = this.used.end();
    for (const gap of this.used.gaps()) {
      const run = { offset: gap.first * clusterSize, length: gap.count * clusterSize };
      if (gap.first >= end) yield run;
      else yield* this.#withoutHoles(run);
    }
  }

  #checkL1Entry(low: number, high: number, index: number, at: number): void {
    const table = high * TWO_32 + low;
    const problem = this.#offsetProblem(low, high, this.#tableBytes);
    if (problem !== undefined) {
      this.#invalid(`L1 entry ${index}: L2 table offset ${problem}`, at, this.#header.l1TableOffset);
      return;
    }
    const shared = this.#claim(table / this.#header.clusterSize, this.#header.tableSize);
    if (shared > 0) {
      // Not read: whose table it is, if it is one, nobody can say.
      this.#corrupt(`L1 entry ${index}: L2 table at ${hex(table)} is used twice`, shared);
      return;
    }
    const guestBase = index * (this.#tableBytes / QED_ENTRY_BYTES) * this.#header.clusterSize;
    let last = 0;
    this.#eachEntry(table, `L2 table of L1 entry ${index}`, (entryLow, entryHigh, entryIndex, entryAt) => {
      if (entryHigh === 0 && entryLow === QED_ZERO_CLUSTER) return;
      const guest = guestBase + entryIndex * this.#header.clusterSize;
      last = this.#checkL2Entry(entryLow, entryHigh, guest, entryAt, table, last);
    });
  }

  /** @returns the cluster's offset: the next one of this table is fragmented when it does not follow it */
  #checkL2Entry(low: number, high: number, guest: number, at: number, table: number, last: number): number {
    const { clusterSize } = this.#header;
    const cluster = high * TWO_32 + low;
    this.allocatedClusters++;
    if (last !== 0 && cluster !== last + clusterSize) this.fragmentedClusters++;
    const problem = this.#offsetProblem(low, high, clusterSize);
    if (problem !== undefined) this.#invalid(`Guest offset ${hex(guest)}: cluster offset ${problem}`, at, table);
    else if (this.#claim(cluster / clusterSize, 1) > 0) {
      this.#corrupt(`Guest offset ${hex(guest)}: cluster at ${hex(cluster)} is used twice`);
    }
    return cluster;
  }

  /** Why no table or cluster of `length` bytes can be there. */
  #offsetProblem(low: number, high: number, length: number): string | undefined {
    const { clusterSize } = this.#header;
    const value = high * TWO_32 + low;
    if (value > Number.MAX_SAFE_INTEGER) {
      return `${hex(BigInt(high) * BigInt(TWO_32) + BigInt(low))} is past the end of the file`;
    }
    if (value % clusterSize !== 0) return `${hex(value)} is not a multiple of the cluster size ${hex(clusterSize)}`;
    if (value < this.#headerEnd) return `${hex(value)} is inside the header, which ends at ${hex(this.#headerEnd)}`;
    if (value + length > this.#fileEnd) return `${hex(value)} is past the end of the file (${hex(this.#fileEnd)})`;
    return;
  }

  /** @returns how many of the clusters somebody uses already */
  #claim(first: number, count: number): number {
    let shared = 0;
    for (let cluster = first; cluster < first + count; cluster++) {
      if (this.used.add(cluster)) continue;
      shared++;
      if (this.#doubled.size < DOUBLED_MAX) this.#doubled.add(cluster);
    }
    return shared;
  }

  #invalid(message: string, entryOffset: number, tableOffset: number): void {
    this.invalidEntries++;
    this.#corrupt(message);
    this.onInvalidEntry(entryOffset, tableOffset);
  }

  #corrupt(message: string, count = 1): void {
    this.corruptions += count;
    this.#messages.add(`ERROR ${message}`);
  }

  /** Calls `visit` for the entries that are not 0, slice by slice; holes of the host file hold none. */
  #eachEntry(table: number, name: string, visit: (low: number, high: number, index: number, at: number) => void): void {
    const length = Math.min(SLICE_BYTES, this.#tableBytes);
    const slice = Buffer.alloc(length);
    for (let start = 0; start < this.#tableBytes; start += length) {
      try {
        if (this.#storage.nextData(table + start) >= table + start + length) continue;
        this.#storage.read(table + start, slice, 0, length);
      } catch (error) {
        this.readErrors++;
        const problem = error instanceof BlockError ? error.message : describeHostError(error);
        this.#messages.add(`ERROR ${name} at ${hex(table + start)} cannot be read: ${problem}`);
        return;
      }
      for (let at = 0; at < length; at += QED_ENTRY_BYTES) {
        const low = slice.readUInt32LE(at);
        const high = slice.readUInt32LE(at + 4);
        if (low !== 0 || high !== 0) visit(low, high, (start + at) / QED_ENTRY_BYTES, table + start + at);
      }
    }
  }

  #countLeaks(): void {
    const { clusterSize } = this.#header;
    const end = this.used.end() * clusterSize;
    for (const run of this.leakedRuns()) {
      const count = run.length / clusterSize;
      this.leaks += count;
      if (run.offset >= end) this.leaksAtEnd += count;
      this.#messages.add(
        count === 1 ? `Leaked cluster at ${hex(run.offset)}` : `Leaked clusters: ${count} at ${hex(run.offset)}`,
      );
    }
  }

  /** The clusters of a run that hold data in the host file, as runs. */
  *#withoutHoles(run: HostRun): Generator<HostRun> {
    const { clusterSize } = this.#header;
    const runEnd = run.offset + run.length;
    let at = run.offset;
    while (at < runEnd) {
      const data = this.#storage.nextData(at);
      if (data >= runEnd) return;
      const first = Math.max(at, data - (data % clusterSize));
      const hole = Math.min(this.#storage.nextHole(data), runEnd);
      // Inside the run all offsets are multiples of the cluster size but this one.
      const rest = hole % clusterSize;
      const end = rest === 0 ? hole : hole + clusterSize - rest;
      yield { offset: first, length: end - first };
      at = end;
    }
  }
}
