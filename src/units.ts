/**
 * Arithmetic on offsets. All offsets and lengths are bytes, non-negative safe integers; JavaScript's bit operators cut
 * numbers to 32 bits and must not meet them, so everything here divides. Exact for every safe integer.
 */

export const SECTOR_SIZE = 512;
export const KIB = 1024;
export const MIB = 1024 * 1024;
export const GIB = 1024 * MIB;

export function divCeil(value: number, divisor: number): number {
  return Math.ceil(value / divisor);
}

export function alignDown(offset: number, alignment: number): number {
  return offset - (offset % alignment);
}

export function alignUp(offset: number, alignment: number): number {
  const rest = offset % alignment;
  return rest === 0 ? offset : offset + (alignment - rest);
}

/** True for 1, 2, 4, ... up to 2^53. */
export function isPowerOfTwo(value: number): boolean {
  return (
    Number.isSafeInteger(value) && value > 0 && Number.isInteger(Math.log2(value)) && 2 ** Math.log2(value) === value
  );
}
