/** Reference counts of 1 to 64 bits as they lie in a block: in bytes big-endian, in less than a byte from the low bits on. */

/** The largest count of this width; of 64 bits, the largest that a number holds exactly. `order`: log2 of the bits. */
export function maxRefcount(order: number): number {
  return order === 6 ? Number.MAX_SAFE_INTEGER : 2 ** (2 ** order) - 1;
}

/** Counts in one block. */
export function refcountsPerBlock(clusterSize: number, order: number): number {
  return (clusterSize * 8) / 2 ** order;
}

/** A block whose counts `countOf` tells, by index. */
export function encodeRefcounts(order: number, clusterSize: number, countOf: (index: number) => number): Buffer {
  const block = Buffer.alloc(clusterSize);
  const length = refcountsPerBlock(clusterSize, order);
  for (let index = 0; index < length; index++) {
    const count = countOf(index);
    if (count !== 0) setCount(block, 0, index, order, count);
  }
  return block;
}

/** Reads a count from bytes; `at` is where its block or slice begins. */
export function getCount(bytes: Uint8Array, at: number, index: number, order: number): number {
  if (order < 3) {
    const perByte = 8 >> order;
    const shift = (index % perByte) << order;
    return (bytes[at + Math.floor(index / perByte)] >> shift) & (2 ** (1 << order) - 1);
  }
  const size = 1 << (order - 3);
  let value = 0;
  for (let i = 0, from = at + index * size; i < size; i++) value = value * 256 + bytes[from + i];
  return value;
}

export function setCount(bytes: Uint8Array, at: number, index: number, order: number, value: number): void {
  if (order < 3) {
    const perByte = 8 >> order;
    const shift = (index % perByte) << order;
    const byte = at + Math.floor(index / perByte);
    bytes[byte] = (bytes[byte] & ~((2 ** (1 << order) - 1) << shift)) | (value << shift);
    return;
  }
  const size = 1 << (order - 3);
  let rest = value;
  for (let i = at + (index + 1) * size - 1; i >= at + index * size; i--) {
    bytes[i] = rest % 256;
    rest = Math.floor(rest / 256);
  }
}
