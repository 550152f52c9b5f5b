/**
 * Compressed clusters: a raw deflate stream or a zstd frame that makes exactly one cluster. The bytes at hand go on behind
 * its end (sectors are shared with the next cluster), so the stream itself must say where it ends. Streams come from
 * strangers: what they make is bounded while they are inflated, not afterwards.
 */
import * as zlib from 'node:zlib';
import { BlockError, hex } from '../../errors';
import type { Storage } from '../../storage/storage';
import { libdeflate } from '../../system/libdeflate';
import { zstd } from '../../system/zstd';
import type { Mapping } from '../driver';
import type { CompressionType, Qcow2Header } from './layout';
import { frameLength } from './zstd-header';

/**
 * Fills `cluster` from the stream at the start of `bytes`.
 * @param failure makes the error that is thrown
 */
export function inflateCluster(
  type: CompressionType,
  bytes: Uint8Array,
  cluster: Uint8Array,
  failure: (problem: string) => Error,
): void {
  let made: number;
  try {
    made = type === 'zlib' ? inflate(bytes, cluster) : unzstd(bytes, cluster);
  } catch (error) {
    throw failure(`the ${type} stream is damaged: ${error instanceof Error ? error.message : String(error)}`);
  }
  if (made !== cluster.length) {
    throw failure(`the ${type} stream makes ${made} bytes, a cluster has ${cluster.length}`);
  }
}

/** Reads the whole cluster behind a compressed mapping. */
export function readCompressedCluster(
  header: Qcow2Header,
  storage: Storage,
  mapping: Extract<Mapping, { kind: 'compressed' }>,
  cluster: Uint8Array,
): void {
  const bytes = new Uint8Array(mapping.bytes);
  storage.read(mapping.offset, bytes, 0, bytes.length);
  inflateCluster(header.compressionType, bytes, cluster, (problem) => {
    const { path } = storage;
    return new BlockError(
      'CORRUPT_IMAGE',
      `Cannot read the compressed cluster at ${hex(mapping.offset)} of qcow2 image "${path}": ${problem}`,
      { path, offset: mapping.offset },
    );
  });
}

/** One cluster as a stream; undefined when that is not smaller. */
export function deflateCluster(type: CompressionType, cluster: Uint8Array): Uint8Array | undefined {
  if (type === 'zstd') return zstd().compress(cluster, cluster.length - 1);
  // Readers of the format may have a window of 4 KiB only.
  const made = zlib.deflateRawSync(cluster, { windowBits: 12, memLevel: 9 });
  return made.length < cluster.length ? made : undefined;
}

function inflate(bytes: Uint8Array, cluster: Uint8Array): number {
  // What it does not take is zlib's: that says what is wrong.
  if (libdeflate()?.(bytes, cluster) === true) return cluster.length;
  // In one piece, with room left: a full one makes zlib ask for another.
  const made = zlib.inflateRawSync(bytes, { maxOutputLength: cluster.length, chunkSize: cluster.length + 64 });
  cluster.set(made);
  return made.length;
}

function unzstd(bytes: Uint8Array, cluster: Uint8Array): number {
  return zstd().decompress(bytes.subarray(0, frameLength(bytes, cluster.length)), cluster);
}
