/** File states that a power cut may leave, made from a log of operations. */
import type { RecordedOperation } from '../../src/storage/recording';
import type { Random } from './random';

const SECTOR = 512;
/** Stands for the length of the file where sectors are asked for. */
const LENGTH = -1;

/** The bytes of a file, in a buffer that is zero behind its end. */
export class FileState {
  readonly bytes: Uint8Array;
  length = 0;

  constructor(capacity: number) {
    this.bytes = new Uint8Array(capacity);
  }

  copyFrom(other: FileState): void {
    this.bytes.set(other.bytes.subarray(0, Math.max(this.length, other.length)));
    this.length = other.length;
  }

  /** @param keeps which 512-byte sector of the file a write or a hole really changes, and whether the length changes */
  apply(operation: RecordedOperation, keeps: (sector: number) => boolean = () => true): void {
    switch (operation.kind) {
      case 'write':
        eachSector(operation.offset, operation.bytes.length, (at, from, count) => {
          if (!keeps(at)) return;
          this.bytes.set(operation.bytes.subarray(from, from + count), operation.offset + from);
          this.length = Math.max(this.length, operation.offset + from + count);
        });
        break;
      case 'punch': {
        const inside = Math.min(operation.length, this.length - operation.offset);
        eachSector(operation.offset, inside, (at, from, count) => {
          if (keeps(at)) this.bytes.fill(0, operation.offset + from, operation.offset + from + count);
        });
        break;
      }
      case 'allocate':
        if (keeps(LENGTH)) this.length = Math.max(this.length, operation.offset + operation.length);
        break;
      case 'truncate':
        if (!keeps(LENGTH)) break;
        if (operation.size < this.length) this.bytes.fill(0, operation.size, this.length);
        this.length = operation.size;
        break;
      case 'sync':
        break;
    }
  }
}

/** @param visit number of the sector in the file, and the part of the range that lies in it */
function eachSector(
  offset: number,
  length: number,
  visit: (sector: number, from: number, count: number) => void,
): void {
  for (let from = 0; from < length; ) {
    const at = offset + from;
    const count = Math.min(SECTOR - (at % SECTOR), length - from);
    visit(Math.floor(at / SECTOR), from, count);
    from += count;
  }
}

export interface Cut {
  /** Of each file of the log. */
  states: FileState[];
  /** Operations of the log that had been given to the host. */
  given: number;
  /** Some of them were lost or torn. */
  torn: boolean;
}

export interface CutOptions {
  random: Random;
  /** Random states for each cut where not all are made. */
  subsets: number;
  /** All states are made where at most so many sectors and changes of length are pending: 2 to that power. Else none. */
  exhaustive?: number;
}

/** How many states of each sort there were. */
export interface Coverage {
  /** Everything given had arrived. */
  prefixes: number;
  /** Of cuts where every combination of pending sectors was made. */
  exhaustive: number;
  /** Random ones, where there are too many. */
  sampled: number;
}

/** A sector that an operation changes, or its change of the file's length. */
interface Unit {
  operation: number;
  sector: number;
}

/**
 * All states for cuts after `from` operations and more: everything given has arrived; and for each cut with operations that
 * no sync of their file covers, states in which some of those are lost, and some arrive only in part. Each sector holds any of
 * its versions since the last sync: that includes every order in which the host may write.
 *
 * `visit` may not keep the states. Returns false: no more of them.
 */
export function eachCut(
  starts: readonly FileState[],
  log: readonly RecordedOperation[],
  options: CutOptions,
  visit: (cut: Cut) => boolean,
): Coverage {
  const coverage: Coverage = { prefixes: 0, exhaustive: 0, sampled: 0 };
  const durable = starts.map((start) => copyOf(start));
  const states = starts.map((start) => new FileState(start.bytes.length));
  let pending: RecordedOperation[] = [];
  const show = (given: number, keeps?: (index: number, sector: number) => boolean): boolean => {
    states.forEach((state, file) => {
      state.copyFrom(durable[file]);
    });
    for (const [index, operation] of pending.entries()) {
      states[operation.file ?? 0].apply(operation, keeps && ((sector) => keeps(index, sector)));
    }
    return visit({ states, given, torn: keeps !== undefined });
  };
  for (let given = 0; given <= log.length; given++) {
    const last = given === 0 ? undefined : log[given - 1];
    if (last !== undefined) pending.push(last);
    if (last?.kind === 'sync') {
      const inFile = (operation: RecordedOperation) => (operation.file ?? 0) === (last.file ?? 0);
      for (const done of pending.filter(inFile)) durable[last.file ?? 0].apply(done);
      pending = pending.filter((operation) => !inFile(operation));
    }
    coverage.prefixes++;
    if (!show(given)) return coverage;
    if (pending.length === 0) continue;
    const units = unitsOf(pending);
    if (units.length <= (options.exhaustive ?? 0)) {
      for (const kept of combinations(units, last?.kind === 'sync' ? -1 : pending.length - 1)) {
        coverage.exhaustive++;
        if (!show(given, (index, sector) => kept.has(`${index} ${sector}`))) return coverage;
      }
      continue;
    }
    for (let subset = 0; subset < options.subsets; subset++) {
      coverage.sampled++;
      if (!show(given, randomly(pending.length, options.random))) return coverage;
    }
  }
  return coverage;
}

function copyOf(state: FileState): FileState {
  const copy = new FileState(state.bytes.length);
  copy.copyFrom(state);
  return copy;
}

function unitsOf(pending: readonly RecordedOperation[]): Unit[] {
  return pending.flatMap((change, operation) => {
    if (change.kind === 'sync') return [];
    if (change.kind === 'truncate' || change.kind === 'allocate') return [{ operation, sector: LENGTH }];
    const units: Unit[] = [];
    const length = change.kind === 'write' ? change.bytes.length : change.length;
    eachSector(change.offset, length, (sector) => units.push({ operation, sector }));
    return units;
  });
}

/**
 * All choices of units but that of all; only those with something of the last operation, because the others were made
 * when it had not been given yet. @param last its index; -1: none is new
 */
function* combinations(units: Unit[], last: number): Generator<Set<string>> {
  for (let mask = 0; mask < 2 ** units.length - 1; mask++) {
    const kept = units.filter((_, index) => Math.floor(mask / 2 ** index) % 2 === 1);
    if (last >= 0 && !kept.some(({ operation }) => operation === last)) continue;
    yield new Set(kept.map(({ operation, sector }) => `${operation} ${sector}`));
  }
}

/** Some operations are lost, some torn: asked once for each sector, in order. */
function randomly(operations: number, random: Random): (index: number, sector: number) => boolean {
  const lost = random.next();
  const fates = Array.from({ length: operations }, () =>
    random.chance(lost) ? 'lost' : random.chance(0.4) ? 'torn' : 'whole',
  );
  return (index) => fates[index] === 'whole' || (fates[index] === 'torn' && random.chance(0.5));
}
