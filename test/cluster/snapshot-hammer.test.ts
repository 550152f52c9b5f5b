/** Threads write while another one takes, deletes and renames snapshots, and others read those: no snapshot ever changes. */
import * as path from 'node:path';
import { Worker } from 'node:worker_threads';
import test, { type ExecutionContext } from 'ava';
import type { BlockNode } from '../../src/block/node';
import { type ImageDescriptor, maintain } from '../../src/block/open';
import {
  deleteSnapshot,
  listSnapshots,
  openSnapshot,
  renameSnapshot,
  revertToSnapshot,
  takeSnapshot,
} from '../../src/block/snapshots';
import { KIB, MIB } from '../../src/units';
import {
  checkFile,
  createImage,
  createInMemory,
  type ImageSpec,
  open,
  openChainOf,
  temporaryDirectory,
} from '../helpers/images';
import { LONG, Random, seedOf } from '../helpers/random';
import { checkSound } from '../helpers/snapshot-images';
import { judge, numberOf, rowWords, type SnapshotHammerPlan } from './snapshot-hammer-worker';

const WRITERS = 3;
const VERIFIERS = 2;
const THREADS = 2 + WRITERS + VERIFIERS;
const CELL = 1300;
const SNAPSHOTS = LONG ? 400 : 20;
const MOST = 6;

function layout(random: Random, size: number): number[] {
  const cells: number[] = [];
  // Groups of neighbours, all over the disk: many tables, and clusters that several writers share.
  for (let group = 0; group < 60; group++) {
    const start = Math.floor((group * (size - 64 * KIB)) / 60) + 100 * random.below(50);
    for (let i = 0; i < 6; i++) cells.push(start + i * CELL);
  }
  return cells;
}

class Hammering {
  private readonly cells: number[];
  private readonly control = new Int32Array(new SharedArrayBuffer(16));
  private readonly begun: Int32Array;
  private readonly returned: Int32Array;
  private readonly limits: SharedArrayBuffer;
  private readonly problems: string[] = [];
  private readonly ended: Promise<void>[] = [];
  /** What a cell has at least, whatever was reverted. */
  private floor: Int32Array | undefined;

  constructor(
    private readonly t: ExecutionContext,
    private readonly node: BlockNode,
    private readonly random: Random,
  ) {
    this.cells = layout(random, node.size());
    this.begun = new Int32Array(new SharedArrayBuffer(this.cells.length * 4));
    this.returned = new Int32Array(new SharedArrayBuffer(this.cells.length * 4));
    this.limits = new SharedArrayBuffer(this.rows * rowWords(this.cells.length) * 4);
  }

  private get rows(): number {
    return SNAPSHOTS + 2;
  }

  start(descriptor: ImageDescriptor, seed: number, delays: boolean): void {
    const { cells, rows } = this;
    for (let index = 0; index < WRITERS + VERIFIERS; index++) {
      const plan: SnapshotHammerPlan = {
        descriptor,
        thread: 2 + index,
        role: index < WRITERS ? 'writer' : 'verifier',
        index,
        writers: WRITERS,
        seed,
        cells,
        cellBytes: CELL,
        control: this.control.buffer as SharedArrayBuffer,
        begun: this.begun.buffer as SharedArrayBuffer,
        returned: this.returned.buffer as SharedArrayBuffer,
        limits: this.limits,
        rows,
        delays,
      };
      const worker = new Worker(path.join(__dirname, 'snapshot-hammer-worker.js'), { workerData: plan });
      this.t.teardown(() => worker.terminate());
      this.ended.push(
        new Promise((resolve) => {
          worker.once('message', ({ problem }: { problem?: string }) => this.end(problem, resolve));
          worker.once('error', (error: Error) => this.end(error.stack ?? error.message, resolve));
        }),
      );
    }
  }

  /** Takes and deletes, one after the other, while the others run. */
  async run(): Promise<void> {
    const { node, random } = this;
    for (let taken = 0, hours = 1; taken < SNAPSHOTS && this.problems.length === 0; hours++) {
      const done = Atomics.load(this.control, 1);
      while (Atomics.load(this.control, 1) - done < 60 && this.problems.length === 0) await immediately();
      const list = listSnapshots(node);
      const what = random.below(100);
      if (what < 20 && list.length > 0)
        renameSnapshot(node, random.pick(list).id, `name ${hours}`.repeat(random.between(1, 20)));
      else if (what < 35) maintain(node, Date.now() + hours * 3_600_000);
      // Never the last one: the next would have its id, and whoever reads it could not tell them apart.
      else if (list.length === MOST) deleteSnapshot(node, random.pick(list.slice(0, -1)).id);
      else if (what < 45 && list.length > 1 && taken > SNAPSHOTS / 2) this.revert(random.pick(list).id);
      else {
        this.take();
        taken++;
      }
    }
    Atomics.store(this.control, 0, 1);
    await Promise.all(this.ended);
    this.t.deepEqual(this.problems, []);
    this.t.log(`${Atomics.load(this.control, 1)} writes, ${Atomics.load(this.control, 2)} cells of snapshots read`);
    this.t.true(Atomics.load(this.control, 2) > 100);
  }

  /** Every cell of every snapshot that is left. */
  compareAll(node: BlockNode): void {
    const bytes = new Uint8Array(CELL);
    for (const { id } of listSnapshots(node)) {
      const snapshot = openSnapshot(node, id);
      this.cells.forEach((offset, cell) => {
        snapshot.read(offset, bytes, 0, CELL);
        const number = numberOf(bytes, offset, CELL);
        const problem = typeof number === 'string' ? number : judge(this.row(id), cell, number);
        if (problem !== undefined) this.t.fail(`snapshot ${id}, cell ${cell}: ${problem}`);
      });
    }
  }

  private take(): void {
    const least = this.floor ?? this.returned.slice();
    const { id } = takeSnapshot(this.node, 'hammered');
    const row = this.row(id);
    this.cells.forEach((_, cell) => {
      row[1 + 3 * cell] = least[cell];
      row[2 + 3 * cell] = Atomics.load(this.begun, cell);
    });
    Atomics.store(row, 0, 1);
  }

  /** Cells go back to older writes, and no older than this snapshot's. */
  private revert(id: string): void {
    const row = this.row(id);
    revertToSnapshot(this.node, id);
    this.floor = Int32Array.from(this.cells, (_, cell) =>
      Math.min(row[1 + 3 * cell], this.floor?.[cell] ?? row[1 + 3 * cell]),
    );
  }

  private row(id: string): Int32Array {
    const words = rowWords(this.cells.length);
    return new Int32Array(this.limits, Number(id) * words * 4, words);
  }

  private end(problem: string | undefined, resolve: () => void): void {
    if (problem !== undefined) this.problems.push(problem);
    resolve();
  }
}

function immediately(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

const IN_MEMORY: Omit<ImageSpec, 'size'>[] = [
  { format: 'qcow2', clusterSize: 4 * KIB },
  { format: 'qcow2', clusterSize: 512 },
  { format: 'qcow2', clusterSize: 16 * KIB, extendedL2: true },
];

for (const [index, spec] of IN_MEMORY.entries()) {
  test.serial(`threads in memory, ${spec.clusterSize} bytes a cluster: no snapshot ever changes`, async (t) => {
    const seed = seedOf(t, 8600 + index);
    const storage = createInMemory({ ...spec, size: 100 * MIB }, 64 * MIB);
    const chain = openChainOf([storage], { threads: THREADS });
    const hammering = new Hammering(t, chain.node, new Random(seed));
    hammering.start(chain.descriptor, seed, index === 0);
    await hammering.run();
    hammering.compareAll(chain.node);
    chain.finish();
    t.is(checkSound(storage), undefined);
    hammering.compareAll(openChainOf([storage], { readOnly: true }).node);
  });
}

test.serial('threads on a file: no snapshot ever changes', async (t) => {
  const seed = seedOf(t, 8650);
  const file = path.join(temporaryDirectory(t), 'disk.qcow2');
  createImage(file, { format: 'qcow2', size: 400 * MIB });
  const image = open(file, { threads: THREADS });
  const hammering = new Hammering(t, image.node, new Random(seed));
  hammering.start(image.describe(), seed, false);
  await hammering.run();
  hammering.compareAll(image.node);
  image.close();
  const { corruptions, checkErrors, leaks, messages } = checkFile(file);
  t.deepEqual([corruptions, checkErrors, leaks], [0, 0, 0], messages.join('; '));
});
