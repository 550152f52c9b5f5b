/**
 * Compressed writes: a cluster becomes a stream, which goes the way of an allocating write (see `remapper.ts`): a place,
 * the bytes, the entry. Streams share host clusters; whether there is room behind another one is the driver's to know.
 */
import { BlockError } from '../errors';
import type { Compressor, FormatDriver } from '../formats/driver';
import type { Mapper } from './mapper';
import type { Remapper } from './remapper';

export class CompressedWriter {
  private padded = new Uint8Array(0);

  constructor(
    private readonly driver: FormatDriver,
    private readonly mapper: Mapper,
    private readonly remapper: Remapper,
  ) {}

  /**
   * Writes one cluster, or what the disk has of its last one.
   * @returns false when nothing was written: it would not be smaller, or the disk has grown into the rest of the cluster
   */
  write(guest: number, source: Uint8Array, at: number, length: number): boolean {
    const { driver } = this;
    const { clusterSize, state } = driver;
    const compressor = compressorOf(driver);
    // What is wrong with the old entry is found now, as by every other write.
    this.mapper.lookUpForChange(guest, length);
    const stream = compressor.compress(this.wholeCluster(source, at, length));
    if (stream === undefined) return false;
    const isWhole = () => length === clusterSize || state.virtualSize === guest + length;
    return this.remapper.changing(guest, { start: guest, end: guest + clusterSize }, () => {
      const place = this.remapper.reserve(guest, () => compressor.reserve(stream.length));
      try {
        driver.growHostFile(place.offset + place.length);
        driver.storage.write(place.offset, stream, 0, stream.length, 'data-write');
        state.markDataDirty();
      } catch (error) {
        this.mapper.locked(() => driver.release(place));
        throw error;
      }
      const target = { kind: 'compressed' as const, offset: place.offset, bytes: stream.length };
      return this.remapper.publish(guest, clusterSize, target, place, isWhole);
    });
  }

  private wholeCluster(source: Uint8Array, at: number, length: number): Uint8Array {
    const { clusterSize } = this.driver;
    if (length === clusterSize) return source.subarray(at, at + length);
    if (this.padded.length === 0) this.padded = new Uint8Array(clusterSize);
    this.padded.fill(0, length);
    this.padded.set(source.subarray(at, at + length));
    return this.padded;
  }
}

/** Throws UNSUPPORTED_FEATURE where nothing can be written compressed. */
export function compressorOf(driver: FormatDriver): Compressor {
  if (driver.compressor === undefined) throw cannotCompress(driver);
  return driver.compressor;
}

export function cannotCompress({ format, storage, data }: FormatDriver): BlockError {
  const { path } = storage;
  const why = data === storage ? `${format} has no compressed clusters` : 'its data lie in an external file';
  return new BlockError('UNSUPPORTED_FEATURE', `Cannot write compressed data to "${path}": ${why}`, { path });
}
