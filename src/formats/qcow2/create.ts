/**
 * Writes a new qcow2 image. The bytes are those of `qemu-img create -f qcow2` for images without preallocation and for
 * `preallocation=metadata`, as long as one cluster of refcount table is enough; elsewhere the layout is ours.
 *
 *     header | refcount table | refcount block 0 | L1 table | (L2 table, its data) ... with more refcount blocks in between,
 *     each at the place that was next when it was needed first
 */
import { BlockError, type BlockErrorCode, hex } from '../../errors';
import type { Storage } from '../../storage/storage';
import { SECTOR_SIZE } from '../../units';
import type { CreateOptions } from '../format';
import { writeZeroBytes } from '../raw/create';
import { createProblem, newQcow2Header } from './create-header';
import { COPIED, highOf, lowOf } from './entry';
import { encodeQcow2Header } from './header';
import { l1EntriesFor, maxVirtualSize, type Qcow2Header, REFCOUNT_TABLE_MAX_BYTES } from './layout';
import { encodeRefcounts } from './refcount-codec';

/** Bytes of an L2 table that QEMU fills at a time: a refcount block that is wanted lands behind that much data. */
const SLICE_BYTES = 4096;

/** A run of data clusters of one L2 table. */
interface Run {
  /** First entry in the table. */
  index: number;
  count: number;
  /** First host cluster. */
  cluster: number;
}

/** Hands out clusters from the start of the file and keeps a refcount block for each of them. */
class Places {
  next = 0;
  /** Host cluster of each refcount block, by index. */
  readonly blocks: number[] = [];

  constructor(readonly perBlock: number) {}

  take(count: number): number {
    const first = this.next;
    this.next += count;
    const last = Math.floor((first + count - 1) / this.perBlock);
    for (let index = Math.floor(first / this.perBlock); index <= last; index++) this.#needBlock(index);
    return first;
  }

  #needBlock(index: number): void {
    if (this.blocks[index] !== undefined) return;
    this.blocks[index] = this.next++;
    this.#needBlock(Math.floor(this.blocks[index] / this.perBlock));
  }
}

/** Where everything goes, for a refcount table of `tableClusters`. */
interface Layout {
  places: Places;
  tableClusters: number;
  l1Cluster: number;
  /** Bytes that the file has. */
  length: number;
}

/**
 * Makes the storage a new, empty image. All options are checked before the first byte changes.
 *
 * @param data the external data file when the options name one; emptied, set to the size of the disk
 */
export function createQcow2(storage: Storage, options: CreateOptions, data?: Storage): void {
  const { path } = storage;
  const header = checkedHeader(options, path);
  const preallocated = wantsTables(options);
  const layout = planLayout(header, preallocated, path);
  header.l1TableOffset = header.l1Entries === 0 ? 0 : layout.l1Cluster * header.clusterSize;
  header.refcountTableOffset = header.clusterSize;
  header.refcountTableClusters = layout.tableClusters;
  const head = encodeQcow2Header(header, path);
  if (data !== undefined) fillDataFile(data, options);

  // Everything old goes first, and the header comes last, so that no half-made image can be taken for a good one.
  storage.truncate(0, 'create');
  storage.truncate(layout.length, 'create');
  const descriptor = storage.describe();
  // A device keeps its old content where nothing is written.
  if (descriptor.kind === 'file' && descriptor.isBlockDevice) storage.punch(0, layout.length, 'create');
  const inside = header.dataFile === undefined ? options.preallocation : undefined;
  if (inside === 'falloc') storage.allocate(0, layout.length, 'create');
  writeRefcounts(storage, header, layout);
  if (preallocated) {
    writeTables(storage, header, inside === 'full');
  }
  if (head.length < layout.length) storage.sync('create');
  storage.write(0, head, 0, head.length, 'create');
  storage.sync('create');
}

/** An external raw file always has its tables: whoever writes it directly does not make them. */
function wantsTables(options: CreateOptions): boolean {
  const { preallocation = 'off', dataFile } = options;
  return preallocation !== 'off' || dataFile?.raw === true;
}

/** The header without the places of its tables; throws for options that are not legal. */
function checkedHeader(options: CreateOptions, path: string): Qcow2Header {
  const problem = createProblem(options);
  if (problem !== undefined) fail(path, problem.code, problem.text);
  const header = newQcow2Header(options);
  const { size } = options;
  if (!Number.isSafeInteger(size) || size < 0 || size > maxVirtualSize(header.clusterSize, header.extendedL2)) {
    fail(
      path,
      'LIMIT_EXCEEDED',
      "The image size is too large for file format 'qcow2' (try using a larger cluster size)",
    );
  }
  if (size % SECTOR_SIZE !== 0) {
    fail(path, 'INVALID_FORMAT', `image size ${hex(size)} is not a multiple of ${SECTOR_SIZE}`);
  }
  header.l1Entries = l1EntriesFor(size, header.clusterSize, header.extendedL2);
  return header;
}

function planLayout(header: Qcow2Header, preallocated: boolean, path: string): Layout {
  const { clusterSize } = header;
  const entriesPerCluster = clusterSize / 8;
  // A larger table moves everything behind it, which may need one more block: asked again until it fits.
  for (let tableClusters = 1; ; ) {
    if (tableClusters * clusterSize > REFCOUNT_TABLE_MAX_BYTES) {
      fail(path, 'LIMIT_EXCEEDED', `its refcount table would have more than ${REFCOUNT_TABLE_MAX_BYTES} bytes`);
    }
    const { places, l1Cluster } = startPlaces(header, tableClusters);
    const l1End = l1Cluster * clusterSize + header.l1Entries * 8;
    if (preallocated) {
      for (const _ of placeTables(header, places));
    }
    const needed = Math.ceil(places.blocks.length / entriesPerCluster);
    if (needed <= tableClusters) {
      // The last thing placed decides: of an L1 table QEMU writes the entries, of everything else whole clusters.
      const l1Last = places.next === l1Cluster + Math.ceil((header.l1Entries * 8) / clusterSize);
      const length = header.l1Entries > 0 && l1Last ? l1End : places.next * clusterSize;
      return { places, tableClusters, l1Cluster, length };
    }
    tableClusters = needed;
  }
}

/** Header, refcount table, first block, L1 table. */
function startPlaces(header: Qcow2Header, tableClusters: number): { places: Places; l1Cluster: number } {
  const places = new Places((header.clusterSize * 8) / 2 ** header.refcountOrder);
  // The first block comes directly behind the table; its own place counts with them.
  places.take(1 + tableClusters);
  const l1Cluster = places.next;
  if (header.l1Entries > 0) places.take(Math.ceil((header.l1Entries * 8) / header.clusterSize));
  return { places, l1Cluster };
}

/** L2 tables and their data clusters in the order of the disk. */
function* placeTables(header: Qcow2Header, places: Places): Generator<{ table: number; runs: Run[] }> {
  const { clusterSize, virtualSize } = header;
  const entryBytes = header.extendedL2 ? 16 : 8;
  const perTable = clusterSize / entryBytes;
  const perSlice = Math.min(clusterSize, SLICE_BYTES) / entryBytes;
  const total = Math.ceil(virtualSize / clusterSize);
  for (let l1Index = 0; l1Index < header.l1Entries; l1Index++) {
    const first = l1Index * perTable;
    const count = Math.min(perTable, total - first);
    const table = places.take(1);
    if (header.dataFile !== undefined) {
      yield { table, runs: [{ index: 0, count, cluster: first }] };
      continue;
    }
    const runs: Run[] = [];
    for (let index = 0; index < count; index += perSlice) {
      const length = Math.min(perSlice, count - index);
      runs.push({ index, count: length, cluster: places.take(length) });
    }
    yield { table, runs };
  }
}

/** Refcount table and blocks: every place up to the end is used once. */
function writeRefcounts(storage: Storage, header: Qcow2Header, layout: Layout): void {
  const { clusterSize, refcountOrder } = header;
  const { places, tableClusters } = layout;
  const table = Buffer.alloc(tableClusters * clusterSize);
  places.blocks.forEach((cluster, index) => {
    table.writeBigUInt64BE(BigInt(cluster * clusterSize), index * 8);
    const first = index * places.perBlock;
    const block = encodeRefcounts(refcountOrder, clusterSize, (at) => (first + at < places.next ? 1 : 0));
    storage.write(cluster * clusterSize, block, 0, clusterSize, 'create');
  });
  storage.write(clusterSize, table, 0, table.length, 'create');
}

/** L1 and L2 tables of a preallocated image; with `full` the data clusters too. */
function writeTables(storage: Storage, header: Qcow2Header, full: boolean): void {
  const { clusterSize, l1TableOffset } = header;
  const entryBytes = header.extendedL2 ? 16 : 8;
  // The same places as in the plan, in the same order.
  const { places } = startPlaces(header, header.refcountTableClusters);
  const l1 = Buffer.alloc(header.l1Entries * 8);
  let l1Index = 0;
  for (const { table, runs } of placeTables(header, places)) {
    writeEntry(l1, l1Index++ * 8, table * clusterSize);
    const l2 = Buffer.alloc(clusterSize);
    for (const { index, count, cluster } of runs) {
      for (let i = 0; i < count; i++) writeEntry(l2, (index + i) * entryBytes, (cluster + i) * clusterSize);
      if (full) writeZeroBytes(storage, cluster * clusterSize, count * clusterSize);
    }
    storage.write(table * clusterSize, l2, 0, clusterSize, 'create');
  }
  storage.write(l1TableOffset, l1, 0, l1.length, 'create');
}

/** An entry that is the only one to name its place. */
function writeEntry(table: Buffer, at: number, offset: number): void {
  table.writeUInt32BE(highOf(offset) + COPIED, at);
  table.writeUInt32BE(lowOf(offset), at + 4);
}

function fillDataFile(data: Storage, options: CreateOptions): void {
  data.truncate(0, 'create');
  data.truncate(options.size, 'create');
  if (options.preallocation === 'falloc' && options.size > 0) data.allocate(0, options.size, 'create');
  if (options.preallocation === 'full') writeZeroBytes(data, 0, options.size);
  data.sync('create');
}

function fail(path: string, code: BlockErrorCode, problem: string): never {
  throw new BlockError(code, `Cannot create qcow2 image "${path}": ${problem}`, { path });
}
