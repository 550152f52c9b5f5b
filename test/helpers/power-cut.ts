/** File states that a power cut may leave, made from a log of operations. */
import type { RecordedOperation } from '../../src/storage/recording';
import type { Random } from './random';

const SECTOR = 512;

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

  /** @param keeps which 512-byte sector of the file a write or a hole really changes */
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
        this.length = Math.max(this.length, operation.offset + operation.length);
        break;
      case 'truncate':
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
  state: FileState;
  /** Operations of the log that had been given to the host. */
  given: number;
  /** Some of them were lost or torn. */
  torn: boolean;
}

/**
 * All states for cuts after `from` operations and more: everything given has arrived; and `subsets` times for each cut with
 * operations that no sync covers, some of those are lost, and some arrive only in part. `visit` may not keep the state.
 */
export function eachCut(
  start: FileState,
  log: readonly RecordedOperation[],
  options: { random: Random; subsets: number; every: number },
  visit: (cut: Cut) => void,
): void {
  const { random } = options;
  const durable = new FileState(start.bytes.length);
  durable.copyFrom(start);
  const state = new FileState(start.bytes.length);
  let pending: RecordedOperation[] = [];
  for (let given = 0; given <= log.length; given++) {
    if (given > 0) {
      const operation = log[given - 1];
      pending.push(operation);
      if (operation.kind === 'sync') {
        for (const done of pending) durable.apply(done);
        pending = [];
      }
    }
    if (given % options.every === 0 || pending.length === 0) {
      state.copyFrom(durable);
      for (const operation of pending) state.apply(operation);
      visit({ state, given, torn: false });
    }
    if (pending.length === 0 || given % options.every !== 0) continue;
    for (let subset = 0; subset < options.subsets; subset++) {
      state.copyFrom(durable);
      const lost = random.next();
      for (const operation of pending) {
        if (random.chance(lost)) continue;
        if (random.chance(0.4)) state.apply(operation, () => random.chance(0.5));
        else state.apply(operation);
      }
      visit({ state, given, torn: true });
    }
  }
}
