/** A walk over all tables of a qcow (version 1) image, for tests: the format has no check of its own. Not for large disks. */
import type { CheckResult } from '../../src/formats/format';
import { QCOW_HEADER_BYTES, qcowL1Bytes, readQcowHeader } from '../../src/formats/qcow/header';
import type { Storage } from '../../src/storage/storage';

const COMPRESSED = 1n << 63n;

/**
 * Counts entries that point outside the file, into something else's place or to an odd offset as corruptions, and
 * clusters that nothing uses and that do not read zero as leaks.
 */
export function checkQcowTables(storage: Storage): CheckResult {
  const header = readQcowHeader(storage);
  const { clusterSize, clusterBits, l1TableOffset } = header;
  const messages: string[] = [];
  const used = new Map<number, string>();
  const size = storage.size();
  let leaks = 0;
  let compressed = 0;
  const claim = (offset: number, length: number, what: string) => {
    if (offset % 512 !== 0 || offset + length > size) messages.push(`${what} at ${offset} is not inside ${size}`);
    for (let at = offset - (offset % clusterSize); at < offset + length; at += clusterSize) {
      const other = used.get(at);
      if (other !== undefined) messages.push(`${what} lies in the place of ${other} at ${at}`);
      used.set(at, what);
    }
  };
  const read = (offset: number, length: number) => {
    const bytes = Buffer.alloc(length);
    storage.read(offset, bytes, 0, length);
    return bytes;
  };
  /** Those that are not 0, with their index: tests look at thousands of tables, nearly empty ones. */
  const entries = (offset: number, length: number) => {
    const bytes = read(offset, length);
    const found: [number, bigint][] = [];
    for (let at = 0; at < length; at += 8) {
      if (bytes.readUInt32BE(at) !== 0 || bytes.readUInt32BE(at + 4) !== 0)
        found.push([at / 8, bytes.readBigUInt64BE(at)]);
    }
    return found;
  };

  const l1Bytes = qcowL1Bytes(header, header.virtualSize);
  used.set(0, 'header');
  for (let at = 0; at < QCOW_HEADER_BYTES + header.backingNameSize; at += clusterSize) used.set(at, 'header');
  for (let at = l1TableOffset - (l1TableOffset % clusterSize); at < l1TableOffset + l1Bytes; at += clusterSize) {
    used.set(at, 'L1 table');
  }
  const streams: number[] = [];
  for (const [index, table] of entries(l1TableOffset, l1Bytes)) {
    claim(Number(table), 2 ** header.l2Bits * 8, `L2 table ${index}`);
    for (const [inTable, entry] of entries(Number(table), 2 ** header.l2Bits * 8)) {
      if (entry >= COMPRESSED) {
        compressed++;
        const bits = BigInt(63 - clusterBits);
        streams.push(Number(entry & ((1n << bits) - 1n)), Number((entry & ~COMPRESSED) >> bits));
      } else if (entry % BigInt(clusterSize) !== 0n) messages.push(`odd cluster ${entry}`);
      else claim(Number(entry), clusterSize, `cluster ${inTable} of table ${index}`);
    }
  }
  for (let i = 0; i < streams.length; i += 2) {
    for (let at = streams[i] - (streams[i] % clusterSize); at < streams[i] + streams[i + 1]; at += clusterSize) {
      if (used.get(at) !== undefined && used.get(at) !== 'stream') messages.push(`a stream lies in ${used.get(at)}`);
      used.set(at, 'stream');
    }
  }
  const zeroes = Buffer.alloc(clusterSize);
  for (let at = 0; at < size; at += clusterSize) {
    if (!used.has(at) && !read(at, clusterSize).equals(zeroes)) leaks++;
  }
  return {
    checkErrors: 0,
    corruptions: messages.length,
    leaks,
    corruptionsFixed: 0,
    leaksFixed: 0,
    totalClusters: used.size,
    allocatedClusters: used.size,
    fragmentedClusters: 0,
    compressedClusters: compressed,
    imageEndOffset: size,
    messages,
  };
}
