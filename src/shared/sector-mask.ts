/** Which of the 32 sectors of a table slice were changed, a bit each. */
import { BlockError } from '../errors';

export const SECTOR = 512;

/** Bits of the sectors that `[from, from + length)` of a slice touches. */
export function sectorMask(from: number, length: number): number {
  const first = Math.floor(from / SECTOR);
  const last = Math.floor((from + length - 1) / SECTOR);
  if (first < 0 || last > 31) throw new BlockError('IO', `table range ${from}+${length} is not inside a slice`);
  const upTo = last === 31 ? -1 : (1 << (last + 1)) - 1;
  return upTo & ~((1 << first) - 1);
}

/** Byte range of a slice from the first sector in the mask to the last one; `mask` is not 0. */
export function sectorRange(mask: number): { from: number; to: number } {
  return { from: (31 - Math.clz32(mask & -mask)) * SECTOR, to: (32 - Math.clz32(mask)) * SECTOR };
}
