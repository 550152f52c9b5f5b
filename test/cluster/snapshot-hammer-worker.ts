/**
 * A writer, or a verifier of snapshots, among threads that use one image at once.
 *
 * The disk has cells; each belongs to one writer, and neighbours share clusters. A cell holds the number of the write that
 * filled it, and bytes that follow from it. Each write is one request, so a snapshot holds all of it or nothing of it.
 */
import { parentPort, workerData } from 'node:worker_threads';
import type { BlockNode } from '../../src/block/node';
import { attachChain, type ImageDescriptor } from '../../src/block/open';
import { listSnapshots, openSnapshot } from '../../src/block/snapshots';
import { BlockError } from '../../src/errors';
import { attachStorage } from '../../src/storage/attach';
import { DelayedStorage } from '../helpers/delayed-storage';
import { fillPattern, Random } from '../helpers/random';

export interface SnapshotHammerPlan {
  descriptor: ImageDescriptor;
  /** Thread number in the image. */
  thread: number;
  role: 'writer' | 'verifier';
  /** Index among the writers, and how many they are. */
  index: number;
  writers: number;
  seed: number;
  /** Host-order starts of the cells. */
  cells: number[];
  cellBytes: number;
  /** Word 0: stop; word 1: writes done; word 2: snapshot reads done. */
  control: SharedArrayBuffer;
  /** Number of the last write of each cell that has begun, and that has returned. */
  begun: SharedArrayBuffer;
  returned: SharedArrayBuffer;
  /**
   * For each snapshot by its id: the least and the greatest number that each cell may have in it, and the one that was found;
   * 0: nobody knows yet. Word 0 of a row: 1 when the limits are there.
   */
  limits: SharedArrayBuffer;
  rows: number;
  delays: boolean;
}

/** Words of a row of `limits`. */
export const rowWords = (cells: number) => 1 + 3 * cells;

const HEADER = 8;

export function fillCell(target: Uint8Array, offset: number, length: number, number: number): void {
  new DataView(target.buffer, target.byteOffset).setFloat64(0, number);
  fillPattern(target, HEADER, offset, length - HEADER, number);
}

/** The number of the write that the cell holds whole; or what is wrong with it. 0: it was never written. */
export function numberOf(bytes: Uint8Array, offset: number, length: number): number | string {
  const number = new DataView(bytes.buffer, bytes.byteOffset).getFloat64(0);
  if (number === 0) return bytes.subarray(0, length).every((byte) => byte === 0) ? 0 : `cell ${offset} is torn`;
  const expected = new Uint8Array(length);
  fillCell(expected, offset, length, number);
  return Buffer.compare(bytes.subarray(0, length), expected) === 0
    ? number
    : `cell ${offset} is torn at write ${number}`;
}

function write(plan: SnapshotHammerPlan, node: BlockNode): string | undefined {
  const random = new Random(plan.seed + plan.thread);
  const control = new Int32Array(plan.control);
  const begun = new Int32Array(plan.begun);
  const returned = new Int32Array(plan.returned);
  const bytes = new Uint8Array(plan.cellBytes);
  while (Atomics.load(control, 0) === 0) {
    let cell = random.below(plan.cells.length);
    cell -= (cell % plan.writers) - plan.index;
    if (cell >= plan.cells.length) continue;
    const number = Atomics.add(begun, cell, 1) + 1;
    fillCell(bytes, plan.cells[cell], plan.cellBytes, number);
    node.write(plan.cells[cell], bytes, 0, plan.cellBytes);
    Atomics.store(returned, cell, number);
    Atomics.add(control, 1, 1);
    if (random.chance(0.02)) node.flush();
  }
  return undefined;
}

function verify(plan: SnapshotHammerPlan, node: BlockNode): string | undefined {
  const random = new Random(plan.seed + plan.thread);
  const control = new Int32Array(plan.control);
  const bytes = new Uint8Array(plan.cellBytes);
  const words = rowWords(plan.cells.length);
  while (Atomics.load(control, 0) === 0) {
    const list = listSnapshots(node);
    if (list.length === 0) continue;
    const { id } = random.pick(list);
    const row = new Int32Array(plan.limits, Number(id) * words * 4, words);
    try {
      const snapshot = openSnapshot(node, id);
      for (let i = 0; i < 20; i++) {
        const cell = random.below(plan.cells.length);
        snapshot.read(plan.cells[cell], bytes, 0, plan.cellBytes);
        const number = numberOf(bytes, plan.cells[cell], plan.cellBytes);
        if (typeof number === 'string') return `snapshot ${id}: ${number}`;
        const problem = judge(row, cell, number);
        if (problem !== undefined) return `snapshot ${id}, cell ${cell}: ${problem}`;
        Atomics.add(control, 2, 1);
      }
    } catch (error) {
      // Somebody deleted it meanwhile.
      if (!(error instanceof BlockError) || error.code !== 'NOT_FOUND') throw error;
    }
  }
  return undefined;
}

/** @param row of the snapshot */
export function judge(row: Int32Array, cell: number, number: number): string | undefined {
  const [least, greatest, found] = [1 + 3 * cell, 2 + 3 * cell, 3 + 3 * cell];
  // One more, so that 0 says that nobody has looked.
  const before = Atomics.compareExchange(row, found, 0, number + 1);
  if (before !== 0 && before !== number + 1) return `it held write ${before - 1}, now ${number}`;
  if (Atomics.load(row, 0) === 0) return undefined;
  if (number >= row[least] && number <= row[greatest]) return undefined;
  return `it holds write ${number}, and was taken between ${row[least]} and ${row[greatest]}`;
}

if (parentPort !== null && workerData?.descriptor !== undefined) {
  const plan = workerData as SnapshotHammerPlan;
  const slow = new Random(plan.seed + 100 + plan.thread);
  const node = attachChain(plan.descriptor, plan.thread, (layer) => {
    const storage = attachStorage(layer);
    return plan.delays ? new DelayedStorage(storage, slow, 0.01, 3) : storage;
  });
  parentPort.postMessage({ problem: plan.role === 'writer' ? write(plan, node) : verify(plan, node) });
}
