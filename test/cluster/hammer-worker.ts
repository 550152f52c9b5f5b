/**
 * One of several threads that use one image at once. Three kinds of ground:
 *
 *   own       pieces of clusters, each thread's beside the others': only this thread changes them, so it knows their content,
 *             and a copy of a cluster that forgets a neighbour's write shows at once
 *   shared    whole clusters that every thread writes and zeroes: each sector in them says where it belongs, or is zero
 *   rest      nobody writes there: reads as the backing file, or zero
 */
import { parentPort, workerData } from 'node:worker_threads';
import type { BlockNode } from '../../src/block/node';
import { attachChain, type ImageDescriptor } from '../../src/block/open';
import { attachStorage } from '../../src/storage/attach';
import { DelayedStorage } from '../helpers/delayed-storage';
import { fillPattern, Random } from '../helpers/random';

export interface HammerPlan {
  descriptor: ImageDescriptor;
  /** Number of the hammering threads; this one's index. */
  threads: number;
  index: number;
  /** Thread number in the image. */
  thread: number;
  seed: number;
  operations: number;
  cluster: number;
  /** Host-order starts of the clusters that are cut into pieces, and of the shared ones. */
  pieced: number[];
  shared: number[];
  /** Bytes of a piece: piece `i` of a cluster belongs to thread `i % threads`. */
  piece: number;
  /** Content of this thread's pieces, one after another, as cluster × piece: filled in for the final compare. */
  model: SharedArrayBuffer;
  /** Word 0: threads that are ready; word 1: go. */
  start: SharedArrayBuffer;
  /** Some host operations wait, so that others overtake them. */
  delays: boolean;
  /** Backing pattern's tag, or undefined: untouched bytes are zero. */
  base?: number;
}

const SECTOR = 512;

export function pieceOf(plan: Pick<HammerPlan, 'threads' | 'index' | 'piece' | 'pieced' | 'cluster'>, number: number) {
  const perCluster = Math.floor(plan.cluster / plan.piece / plan.threads);
  const start = plan.pieced[Math.floor(number / perCluster)];
  const inCluster = (number % perCluster) * plan.threads + plan.index;
  return { offset: start + inCluster * plan.piece, at: number * plan.piece };
}

export function piecesOf(plan: Pick<HammerPlan, 'threads' | 'piece' | 'pieced' | 'cluster'>): number {
  return plan.pieced.length * Math.floor(plan.cluster / plan.piece / plan.threads);
}

/** Fills whole sectors with words that say where they belong. */
export function stamp(target: Uint8Array, offset: number, length: number): void {
  const view = new DataView(target.buffer, target.byteOffset);
  for (let at = 0; at < length; at += 8) view.setFloat64(at, -(offset + at - (at % SECTOR)));
}

const stamped = new Uint8Array(16 * 1024);
const based = new Uint8Array(16 * 1024);

/**
 * Where the content of a shared cluster cannot come from its own place; undefined when it can. Byte by byte, for nobody
 * promises that a read beside a write of the same sector is not torn.
 */
export function misplaced(bytes: Uint8Array, offset: number, length: number, base?: number): string | undefined {
  stamp(stamped, offset, length);
  if (Buffer.compare(bytes.subarray(0, length), stamped.subarray(0, length)) === 0) return undefined;
  if (base === undefined) based.fill(0, 0, length);
  else fillPattern(based, 0, offset, length, base);
  for (let at = 0; at < length; at++) {
    const byte = bytes[at];
    if (byte === 0 || byte === stamped[at] || byte === based[at]) continue;
    const word = at - (at % 8);
    return `byte ${offset + at} is ${byte}; the word says ${-new DataView(bytes.buffer, bytes.byteOffset).getFloat64(word)}`;
  }
  return undefined;
}

class Hammer {
  private readonly random: Random;
  private readonly model: Uint8Array;
  private readonly buffer: Uint8Array;
  private tag = 0;

  constructor(
    private readonly plan: HammerPlan,
    private readonly node: BlockNode,
  ) {
    this.random = new Random(plan.seed * 1000 + plan.index);
    this.model = new Uint8Array(plan.model);
    this.buffer = new Uint8Array(plan.cluster * 4);
  }

  run(): string | undefined {
    const { random, plan } = this;
    for (let step = 0; step < plan.operations; step++) {
      const what = random.below(100);
      let problem: string | undefined;
      if (what < 30) this.writePiece();
      else if (what < 36) this.zeroPiece();
      else if (what < 52) problem = this.readPiece();
      else if (what < 68) this.writeShared();
      else if (what < 80) this.zeroShared();
      else if (what < 96) problem = this.readShared();
      else if (what < 98) this.node.flush();
      else this.node.status(random.pick(plan.shared), plan.cluster);
      if (problem !== undefined) return `step ${step}: ${problem}`;
    }
    return undefined;
  }

  private part(): { offset: number; at: number; length: number } {
    const { random, plan } = this;
    const { offset, at } = pieceOf(plan, random.below(piecesOf(plan)));
    const from = random.chance(0.5) ? 0 : random.below(plan.piece);
    const length = random.between(1, plan.piece - from);
    return { offset: offset + from, at: at + from, length };
  }

  private writePiece(): void {
    const { offset, at, length } = this.part();
    fillPattern(this.buffer, 0, offset, length, this.plan.index * 100_000 + this.tag++);
    this.node.write(offset, this.buffer, 0, length);
    this.model.set(this.buffer.subarray(0, length), at);
  }

  private zeroPiece(): void {
    const { offset, at, length } = this.part();
    this.node.writeZeroes(offset, length);
    this.model.fill(0, at, at + length);
  }

  private readPiece(): string | undefined {
    const { offset, at, length } = this.part();
    this.node.read(offset, this.buffer, 0, length);
    const same = Buffer.compare(this.buffer.subarray(0, length), this.model.subarray(at, at + length)) === 0;
    return same ? undefined : `own piece at ${offset}+${length} changed under its owner`;
  }

  private clusters(): { offset: number; length: number } {
    const { random, plan } = this;
    // Mostly a few of them: a place is dropped and used again while somebody still holds the old mapping.
    const first = random.below(random.chance(0.7) ? 40 : plan.shared.length);
    let count = 1;
    while (count < 3 && plan.shared[first + count] === plan.shared[first] + count * plan.cluster && random.chance(0.5))
      count++;
    return { offset: plan.shared[first], length: count * plan.cluster };
  }

  private writeShared(): void {
    const { offset, length } = this.clusters();
    stamp(this.buffer, offset, length);
    const { format, clusterSize } = this.node;
    const whole = format.startsWith('qcow') && clusterSize <= this.plan.cluster;
    const compressed = whole && this.random.chance(0.4);
    this.node.write(offset, this.buffer, 0, length, { compressed });
  }

  private zeroShared(): void {
    const { offset, length } = this.clusters();
    this.node.writeZeroes(offset, length);
  }

  private readShared(): string | undefined {
    const { offset, length } = this.clusters();
    this.node.read(offset, this.buffer, 0, length);
    return misplaced(this.buffer, offset, length, this.plan.base);
  }
}

if (parentPort !== null && workerData?.descriptor !== undefined) {
  const plan = workerData as HammerPlan;
  const start = new Int32Array(plan.start);
  const slow = new Random(plan.seed + plan.index);
  const node = attachChain(plan.descriptor, plan.thread, (layer) => {
    const storage = attachStorage(layer);
    return plan.delays ? new DelayedStorage(storage, slow, 0.03, 5) : storage;
  });
  Atomics.add(start, 0, 1);
  Atomics.notify(start, 0);
  Atomics.wait(start, 1, 0);
  parentPort.postMessage({ problem: new Hammer(plan, node).run() });
}
