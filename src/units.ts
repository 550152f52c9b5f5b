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

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB'];

/** `580 KiB`, `1.4 GiB`: three digits, the unit such that less than 1000 of it are left, as qemu-img does. */
export function humanSize(bytes: number): string {
  let unit = 0;
  let value = bytes;
  while (value >= 1000 && unit < UNITS.length - 1) {
    value /= 1024;
    unit++;
  }
  // Number() drops the zeroes behind the point, as C's %g does.
  return `${Number(value.toPrecision(3))} ${UNITS[unit]}`;
}
