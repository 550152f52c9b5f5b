/**
 * qcow version 1 for the engine: big-endian tables, no zero clusters, compressed clusters. Lookups are in `two-level.ts`. A compressed cluster that is overwritten gets a place of its own; the stream's space is lost, because
 * its first and last sector may be shared with the streams beside it, and nothing counts who uses them.
 */
import { BlockError, hex } from '../../errors';
import type { ImageState } from '../../shared/image-state';
import { SLICE_BYTES, type TableCache, type TableSlice } from '../../shared/table-cache';
import type { Storage } from '../../storage/storage';
import { alignUp, MIB, SECTOR_SIZE } from '../../units';
import type { Compressor, DriverCapabilities, HostOffset, Mapping, Reservation } from '../driver';
import { deflateCluster, inflateCluster } from '../qcow2/compressed';
import { ENTRY_BYTES, initL1, type StreamTarget, TwoLevelDriver } from '../two-level';
import { compressedBytes, compressedEntry, compressedOffset, isCompressed } from './entry';
import {
  encodeQcowHeader,
  QCOW_HEADER_BYTES,
  QCOW_L1_ENTRIES_MAX,
  type QcowHeader,
  qcowFirstCluster,
  qcowL1Bytes,
  qcowMaxSize,
} from './header';

export const QCOW_CAPABILITIES: DriverCapabilities = { clusters: true, backing: true };

/** In `ImageState.numbers`: where the next stream goes, and the end of the clusters taken for streams. */
const STREAM_END = 2;
const STREAM_LIMIT = 3;

type CompressedMapping = Extract<Mapping, { kind: 'compressed' }>;

export class QcowDriver extends TwoLevelDriver {
  readonly format = 'qcow';
  readonly capabilities = QCOW_CAPABILITIES;
  /** The format has none. The order of writes alone keeps every entry right. */
  readonly usesDirtyBit = false;
  readonly maxVirtualSize: number;
  readonly compressor: Compressor;
  private stream = new Uint8Array(0);

  constructor(
    private readonly header: QcowHeader,
    storage: Storage,
    state: ImageState,
    cache: TableCache,
    imageId: number,
  ) {
    const layout = {
      name: 'qcow',
      clusterSize: header.clusterSize,
      tableBytes: 2 ** header.l2Bits * ENTRY_BYTES,
      // Smaller than a cluster, perhaps.
      tableAlignment: SECTOR_SIZE,
      firstCluster: qcowFirstCluster(header),
      littleEndian: false,
      zeroEntry: -1,
    };
    super(layout, storage, state, cache, imageId);
    this.maxVirtualSize = qcowMaxSize(header);
    this.compressor = {
      compress: (cluster) => deflateCluster('zlib', cluster),
      reserve: (bytes) => this.reserveStream(bytes),
    };
  }

  writeHeader(fields: { dirty: boolean; virtualSize: number }): void {
    this.writeFields(fields.virtualSize, this.l1Offset);
  }

  readCompressed(mapping: CompressedMapping, cluster: Uint8Array): void {
    const { storage } = this;
    // Less than a cluster.
    if (this.stream.length < mapping.bytes) this.stream = new Uint8Array(this.clusterSize);
    const bytes = this.stream.subarray(0, mapping.bytes);
    storage.read(mapping.offset, bytes, 0, bytes.length);
    inflateCluster('zlib', bytes, cluster, (problem) => {
      const { path } = storage;
      const message = `Cannot read the compressed cluster at ${hex(mapping.offset)} of qcow image "${path}": ${problem}`;
      return new BlockError('CORRUPT_IMAGE', message, { path, offset: mapping.offset });
    });
  }

  /** Streams lie one behind the other, byte by byte, in clusters that only they use. */
  private reserveStream(bytes: number): Reservation {
    const { clusterSize } = this;
    const { numbers } = this.state;
    if (numbers[STREAM_END] + bytes > numbers[STREAM_LIMIT]) {
      const place = this.allocator.reserve(clusterSize, clusterSize);
      // A table may have been there before.
      this.forgetTables(place.offset, clusterSize);
      if (place.offset !== numbers[STREAM_LIMIT]) numbers[STREAM_END] = place.offset;
      numbers[STREAM_LIMIT] = place.offset + clusterSize;
    }
    const offset = numbers[STREAM_END];
    numbers[STREAM_END] = offset + bytes;
    return { offset, length: bytes, fresh: false };
  }

  /** A stream that was never published is lost space, unless it was the last one. */
  override release(reservation: Reservation): void {
    const { offset, length } = reservation;
    const { numbers } = this.state;
    // Streams are shorter than a cluster.
    if (length % this.clusterSize === 0) super.release(reservation);
    else if (numbers[STREAM_END] === offset + length) numbers[STREAM_END] = offset;
    else this.state.forgotten += length;
  }

  protected override setStreamAt(word: number, { offset, bytes }: StreamTarget): void {
    const { high, low } = compressedEntry(offset, bytes, this.header.clusterBits);
    this.setHalvesAt(word, high, low);
  }

  /**
   * A larger L1 table, elsewhere, when the disk outgrows the old one. The copy is durable before the header names it, and
   * the header before anything in memory follows: a crash leaves the one table or the other, with the same entries.
   */
  growTables(size: number): TableSlice | 'flush' | undefined {
    return this.state.metaMutex.with(() => {
      const needed = qcowL1Bytes(this.header, size);
      const [oldOffset, oldBytes] = [this.l1Offset, this.l1Bytes];
      if (needed <= oldBytes) return undefined;
      // Nobody but us adds tables meanwhile: what is in the file then is all there is.
      if (this.locked(() => this.cache.isDirty(this.imageId, oldOffset, oldOffset + oldBytes))) return 'flush';
      // Some more, so that a growing disk does not need a new table soon.
      const wanted = Math.min(Math.max(needed, Math.ceil(oldBytes * 1.5)), QCOW_L1_ENTRIES_MAX * ENTRY_BYTES);
      const place = this.reserveTable(alignUp(wanted, this.clusterSize));
      try {
        this.allocator.growHostFile(place.offset + place.length);
        this.copyTable(oldOffset, place.offset, oldBytes);
        this.sync('flush-data');
      } catch (error) {
        this.locked(() => this.allocator.release(place));
        throw error;
      }
      // Whatever happens now, the header may name it: the place is never given back.
      this.writeFields(this.state.virtualSize, place.offset);
      this.sync('flush-header');
      this.locked(() => {
        this.forgetTables(oldOffset, oldBytes);
        initL1(this.state, place.offset, place.length);
        // The first table of an image shares its cluster with the header.
        if (oldOffset >= this.firstCluster && oldOffset % this.clusterSize === 0) {
          this.allocator.drop(oldOffset, alignUp(oldBytes, this.clusterSize));
        }
      });
      return undefined;
    });
  }

  protected override unusual(guest: number, maxLength: number, word: number): Mapping | undefined {
    const { clusterBits } = this.header;
    const { high, low } = this.halvesAt(word);
    if (!isCompressed(high)) return undefined;
    const offset = compressedOffset(high, low, clusterBits);
    const bytes = compressedBytes(high, clusterBits);
    // A stream that is cut with the file fails when it is inflated.
    if (bytes === 0 || offset < QCOW_HEADER_BYTES || offset >= this.state.fileEnd) return undefined;
    return {
      kind: 'compressed',
      length: Math.min(maxLength, this.clusterSize - (guest % this.clusterSize)),
      offset,
      bytes,
    };
  }

  /** A place may have held an L1 table before. */
  protected override forgetTables(offset: HostOffset, length: number): void {
    for (let at = offset; at < offset + length; at += SLICE_BYTES) {
      if (this.cache.forgetSlice(this.imageId, at)) this.state.addDirtySlots(-1);
    }
  }

  protected override advice(): string {
    return '';
  }

  private writeFields(virtualSize: number, l1TableOffset: HostOffset): void {
    const bytes = encodeQcowHeader({ ...this.header, virtualSize, l1TableOffset });
    this.storage.write(0, bytes, 0, bytes.length, 'header-update');
  }

  private copyTable(from: HostOffset, to: HostOffset, length: number): void {
    const { storage } = this;
    const piece = new Uint8Array(Math.min(length, MIB));
    for (let done = 0; done < length; ) {
      // The new place reads zero: holes need no copy.
      const skipped = Math.min(length, storage.nextData(from + done) - from);
      if (skipped > done) {
        done = skipped;
        continue;
      }
      const count = Math.min(piece.length, length - done);
      storage.read(from + done, piece, 0, count);
      storage.write(to + done, piece, 0, count, 'l1-update');
      done += count;
    }
    this.state.markDataDirty();
  }

  private sync(event: 'flush-data' | 'flush-header'): void {
    try {
      this.storage.sync(event);
    } catch (error) {
      this.state.markFailed();
      throw error;
    }
  }
}
