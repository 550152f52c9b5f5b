/** Changing L2 entries: what guest clusters point to, and which places they leave by that. The image's lock is held exclusively. */
import type { TableCache } from '../../shared/table-cache';
import type { HostOffset, Target } from '../driver';
import {
  bitRange,
  COPIED,
  compressedBytes,
  compressedEntry,
  compressedOffset,
  highOf,
  isCompressed,
  isCopied,
  lowOf,
  offsetOf,
  swap,
  withBits,
  withoutBits,
  ZERO,
} from './entry';
import type { Qcow2Mapping } from './mapping';

/** What clusters of any number can point to. */
type WholeTarget = Exclude<Target, { kind: 'compressed' }>;

/** Told about each place that is not named any more: bytes, not always whole clusters. */
export type Drop = (offset: HostOffset, length: number) => void;

/**
 * Standard entries.
 *
 * @param word index in `cache.words32` of the first entry
 * @param guest byte position of the first cluster
 */
export function publishClusters(
  cache: TableCache,
  mapping: Qcow2Mapping,
  word: number,
  guest: number,
  count: number,
  target: WholeTarget,
  drop: Drop,
): void {
  const { clusterSize } = mapping;
  const words = cache.words32;
  for (let i = 0, at = word; i < count; i++, at += 2) {
    dropOld(words, at, mapping, guest + i * clusterSize, drop);
    const offset = target.kind === 'data' ? target.offset + i * clusterSize : 0;
    words[at] = target.kind === 'data' ? swap(highOf(offset) + COPIED) : 0;
    words[at + 1] = swap(target.kind === 'zero' ? ZERO : lowOf(offset));
  }
}

/** One cluster becomes a stream of `bytes` at `offset`. @param word index in `cache.words32` of its entry */
export function publishCompressed(
  words: Uint32Array,
  mapping: Qcow2Mapping,
  word: number,
  guest: number,
  target: Extract<Target, { kind: 'compressed' }>,
  drop: Drop,
): void {
  dropOld(words, word, mapping, guest, drop);
  const { high, low } = compressedEntry(target.offset, target.bytes, mapping.clusterBits);
  words[word] = swap(high);
  words[word + 1] = swap(low);
  // With subclusters the second half of an entry is zero here.
  if (mapping.entryBytes > 8) words.fill(0, word + 2, word + 4);
}

/**
 * Extended entries: `[guest, guest + length)` is whole subclusters of any number of clusters.
 */
export function publishSubclusters(
  cache: TableCache,
  mapping: Qcow2Mapping,
  word: number,
  guest: number,
  length: number,
  target: WholeTarget,
  drop: Drop,
): void {
  const { clusterSize, subclusterSize } = mapping;
  let at = word;
  for (let done = 0; done < length; at += 4) {
    const inCluster = (guest + done) % clusterSize;
    const bytes = Math.min(length - done, clusterSize - inCluster);
    const bits = bitRange(inCluster / subclusterSize, Math.ceil((inCluster + bytes) / subclusterSize));
    const start = guest + done - inCluster;
    if (target.kind === 'data') {
      pointSubclusters(cache.words32, at, mapping, start, bits, target.offset + done - inCluster, drop);
    } else {
      clearSubclusters(cache.words32, at, mapping, start, bits, target.kind === 'zero', drop);
    }
    done += bytes;
  }
}

/** The subclusters in `bits` lie in the cluster at `host` from now on. In a new cluster they are all that is allocated. */
function pointSubclusters(
  words: Uint32Array,
  at: number,
  mapping: Qcow2Mapping,
  guest: number,
  bits: number,
  host: HostOffset,
  drop: Drop,
): void {
  const high = swap(words[at]);
  const low = swap(words[at + 1]);
  const compressed = isCompressed(high);
  const stays = !compressed && offsetOf(high, low) === host && isCopied(high);
  const zero = swap(words[at + 2]);
  const allocated = swap(words[at + 3]);
  if (!stays) dropOld(words, at, mapping, guest, drop);
  words[at] = swap(highOf(host) + COPIED);
  words[at + 1] = swap(lowOf(host));
  words[at + 2] = swap(withoutBits(zero, bits));
  words[at + 3] = swap(withBits(stays ? allocated : 0, bits));
}

/** The subclusters in `bits` are not allocated any more. The place goes with the last one. */
function clearSubclusters(
  words: Uint32Array,
  at: number,
  mapping: Qcow2Mapping,
  guest: number,
  bits: number,
  toZero: boolean,
  drop: Drop,
): void {
  const compressed = isCompressed(swap(words[at]));
  const zero = swap(words[at + 2]);
  const allocated = compressed ? 0 : withoutBits(swap(words[at + 3]), bits);
  if (allocated === 0) {
    dropOld(words, at, mapping, guest, drop);
    words[at] = 0;
    words[at + 1] = 0;
  }
  words[at + 2] = swap(toZero ? withBits(zero, bits) : withoutBits(zero, bits));
  words[at + 3] = swap(allocated);
}

/** What an entry names and gives up: a cluster, also one that is kept for zeroes, or compressed data. Places nobody can mean are left alone. */
export function dropOld(words: Uint32Array, at: number, mapping: Qcow2Mapping, guest: number, drop: Drop): void {
  const high = swap(words[at]);
  const low = swap(words[at + 1]);
  if (isCompressed(high)) {
    const offset = compressedOffset(high, low, mapping.clusterBits);
    drop(offset, compressedBytes(high, low, mapping.clusterBits));
    return;
  }
  const host = offsetOf(high, low);
  if (host !== 0 && mapping.isDataCluster(host, guest)) drop(host, mapping.clusterSize);
}

/** Does the entry at `word` name a cluster that only it uses? Then its host offset, else 0. @param owned its table is not shared */
export function ownCluster(words: Uint32Array, word: number, owned: boolean): HostOffset {
  const high = swap(words[word]);
  if (!owned || isCompressed(high) || !isCopied(high)) return 0;
  return offsetOf(high, swap(words[word + 1]));
}

/** Does the entry at `word` name anything? */
export function namesPlace(words: Uint32Array, word: number): boolean {
  const high = swap(words[word]);
  return isCompressed(high) || offsetOf(high, swap(words[word + 1])) !== 0;
}
