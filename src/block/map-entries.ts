/** Which parts of a disk are where: the entries of `qemu-img map --output=json` and of `map.json`. */
import type { BlockNode, BlockStatus } from './node';

/** Field names and their order are those of `qemu-img map --output=json`. */
export interface MapEntry {
  /** Guest offset and length in bytes. */
  start: number;
  length: number;
  /** Layer that decides: 0 is the image itself. */
  depth: number;
  present: boolean;
  zero: boolean;
  data: boolean;
  /** Host offset in the file of that layer. */
  offset?: number;
  /** Present where the data must be inflated first, and has no place of its own. QEMU says it from 8.2 on, everywhere. */
  compressed?: true;
}

export interface GuestRange {
  start: number;
  length: number;
}

/** Entries over the whole chain. The part of the range past the end of the disk is left out. */
export function mapEntries(node: BlockNode, range: GuestRange): Generator<MapEntry> {
  return merged(node, range, (start, length) => node.status(start, length));
}

/** Entries of this layer alone: what is not present here is decided by the layers below. */
export function layerMapEntries(node: BlockNode, range: GuestRange): Generator<MapEntry> {
  return merged(node, range, (start, length) => node.layerStatus(start, length));
}

function* merged(
  node: BlockNode,
  range: GuestRange,
  statusAt: (start: number, length: number) => BlockStatus,
): Generator<MapEntry> {
  const end = Math.min(range.start + range.length, node.size());
  let current: MapEntry | undefined;
  let start = range.start;
  while (start < end) {
    const next = entryOf(node, start, statusAt(start, end - start));
    if (current !== undefined && continues(current, next)) current.length += next.length;
    else {
      if (current !== undefined) yield current;
      current = next;
    }
    start += next.length;
  }
  if (current !== undefined) yield current;
}

function entryOf(node: BlockNode, start: number, status: BlockStatus): MapEntry {
  const { length, depth, present, zero, data } = status;
  const entry: MapEntry = { start, length, depth, present, zero, data };
  const offset = status.offset ?? holeOffset(node, start, status);
  if (offset !== undefined) entry.offset = offset;
  if (status.compressed === true) entry.compressed = true;
  return entry;
}

/** A hole of a raw file has a place in it, as data has; an entry of a table that says "zero" has none. */
function holeOffset(node: BlockNode, start: number, status: BlockStatus): number | undefined {
  if (!status.present || !status.zero) return;
  let layer: BlockNode | undefined = node;
  for (let depth = 0; depth < status.depth; depth++) layer = layer?.backing;
  return layer?.format === 'raw' && start < layer.size() ? start : undefined;
}

/** Same status, and the host bytes follow each other. */
function continues(current: MapEntry, next: MapEntry): boolean {
  const sameKind =
    current.depth === next.depth &&
    current.present === next.present &&
    current.zero === next.zero &&
    current.data === next.data &&
    current.compressed === next.compressed;
  if (!sameKind || (current.offset === undefined) !== (next.offset === undefined)) return false;
  return current.offset === undefined || current.offset + current.length === next.offset;
}
