/** Which writer owns which sectors. Owners are neighbours in every cluster, so that their allocating writes meet. */
import { KIB, MIB, SECTOR_SIZE } from '../../src/units';

export interface Stripe {
  first: number;
  count: number;
}

/** Sectors that the writers own; behind them is room for a stranger (fio), who shares a cluster with the last owner. */
export const OWNED_SECTORS = (12 * MIB - 12 * KIB) / SECTOR_SIZE;
/** Sectors of the whole disk: no multiple of a cluster. */
export const DISK_SECTORS = (16 * MIB) / SECTOR_SIZE + 3;

/** Up to here stripes are short, and no multiple of a page. */
const SHORT_END = (6 * MIB) / SECTOR_SIZE;
const SHORT = 23;
const LONG = 401;

export function stripesOf(writer: number, writers: number): Stripe[] {
  const stripes: Stripe[] = [];
  let index = 0;
  for (let first = 0; first < OWNED_SECTORS; index++) {
    const count = Math.min(first < SHORT_END ? SHORT : LONG, OWNED_SECTORS - first);
    if (index % writers === writer) stripes.push({ first, count });
    first += count;
  }
  return stripes;
}
