/**
 * What each sector of a disk may hold after a crash.
 *
 * Every write has a tag of its own, and each of its sectors holds its number and that tag, over and over; so whoever reads a
 * sector knows which write it is from, and that it is whole. Each sector belongs to one writer, whose operations have numbers
 * that go up. A sector may hold what the last operation that was acknowledged by a sync left there, or what any later one did.
 */
import { SECTOR_SIZE } from '../../src/units';

const WORDS = SECTOR_SIZE / 4;

/** Not a version: bytes that no write ever wrote. */
export const TORN = -1;
/** The version of a sector that reads zero. */
export const ZERO = 0;
/** The version of what the backing file holds. */
export const BASE = 1;
/** The least tag of a writer. */
export const FIRST_TAG = 16;

/** One operation of a writer: the sectors [first, first + count) got this tag, or zeroes. */
export interface Operation {
  number: number;
  first: number;
  count: number;
  tag: number;
}

export function fillSectors(target: Uint8Array, first: number, count: number, tag: number): void {
  const words = new Uint32Array(target.buffer, target.byteOffset, count * WORDS);
  for (let sector = 0; sector < count; sector++) {
    const end = (sector + 1) * WORDS;
    for (let at = sector * WORDS; at < end; at += 2) {
      words[at] = tag === ZERO ? 0 : first + sector;
      words[at + 1] = tag;
    }
  }
}

/** The version that the sector at this place holds. */
export function versionIn(words: Uint32Array, at: number, sector: number): number {
  const tag = words[at + 1];
  const number = tag === ZERO ? 0 : sector;
  for (let word = at; word < at + WORDS; word += 2) {
    if (words[word] !== number || words[word + 1] !== tag) return TORN;
  }
  return tag;
}

/** The versions that the sectors of `bytes` hold, which begin with sector `first` of the disk. */
export function versionsOf(bytes: Uint8Array, first = 0): Int32Array {
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  return Int32Array.from({ length: bytes.length / SECTOR_SIZE }, (_, index) =>
    versionIn(words, index * WORDS, first + index),
  );
}

/** How far a writer had come: numbers of its operations. */
export interface Bounds {
  /** Everything up to this one must be there. */
  floor: number;
  /** Nothing after this one may be there. */
  ceiling: number;
}

/** What may be read, sector by sector. */
export class Expectation {
  private constructor(
    private readonly floor: Int32Array,
    private readonly later: Map<number, number[]>,
  ) {}

  static exactly(versions: Int32Array): Expectation {
    return new Expectation(versions, new Map());
  }

  /**
   * @param start what the sectors held before the first of these operations
   * @param logs of each writer, in the order of its numbers
   */
  static after(start: Int32Array, logs: readonly Operation[][], bounds: readonly Bounds[]): Expectation {
    const floor = Int32Array.from(start);
    const later = new Map<number, number[]>();
    for (const [writer, log] of logs.entries()) {
      const limits = bounds[writer];
      for (const { number, first, count, tag } of log) {
        if (number > limits.ceiling) break;
        for (let sector = first; sector < first + count; sector++) {
          if (number <= limits.floor) floor[sector] = tag;
          else later.set(sector, [...(later.get(sector) ?? []), tag]);
        }
      }
    }
    return new Expectation(floor, later);
  }

  /** How many sectors have more than one possible content. */
  get uncertain(): number {
    return this.later.size;
  }

  /** Lines, a few at most, about those of the sectors found that hold what they must not. */
  violations(found: Int32Array): string[] {
    const lines: string[] = [];
    for (let sector = 0; sector < found.length; sector++) {
      const version = found[sector];
      if (version === this.floor[sector] || this.later.get(sector)?.includes(version)) continue;
      if (lines.length === 8) return [...lines, 'and more'];
      const allowed = [this.floor[sector], ...(this.later.get(sector) ?? [])].map(nameOf).join(', ');
      lines.push(`sector ${sector} holds ${nameOf(version)}; allowed: ${allowed}`);
    }
    return lines;
  }
}

function nameOf(version: number): string {
  if (version === TORN) return 'bytes of no write';
  if (version === ZERO) return 'zeroes';
  return version === BASE ? 'the backing file' : `write ${version}`;
}
