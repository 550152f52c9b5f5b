/** Several worker threads on one image, in memory (most interleavings) and in a file; small cache, clusters reused all the time. */
import * as path from 'node:path';
import { Worker } from 'node:worker_threads';
import test, { type ExecutionContext } from 'ava';
import type { BlockNode } from '../../src/block/node';
import { type ImageDescriptor, maintain } from '../../src/block/open';
import { KIB, MIB } from '../../src/units';
import {
  checkFile,
  checkStorage,
  createImage,
  createInMemory,
  type ImageSpec,
  open,
  openChainOf,
  temporaryDirectory,
} from '../helpers/images';
import { fillPattern, LONG, patternBytes, Random, seedOf } from '../helpers/random';
import { type HammerPlan, misplaced, pieceOf, piecesOf } from './hammer-worker';

const THREADS = 4;
const CLUSTER = 4 * KIB;
const PIECE = 512 * 2 - 100; // pieces that share sectors, too
const SIZE = 700 * MIB;
const BASE_TAG = 77;
const OPERATIONS = LONG ? 300_000 : 4000;

/** Clusters all over the disk, so that 350 L2 tables do not fit into 128 slots; neighbours at some places. */
function layout(random: Random): { pieced: number[]; shared: number[] } {
  const starts = new Set<number>();
  for (let table = 0; table < 350; table++) {
    const first = table * 512 + random.below(500);
    for (let i = 0; i < 3; i++) starts.add((first + i) * CLUSTER);
  }
  const all = [...starts];
  return { pieced: all.filter((_, index) => index % 9 >= 6), shared: all.filter((_, index) => index % 9 < 6) };
}

interface Hammered {
  plans: HammerPlan[];
  problems: string[];
}

async function hammer(
  t: ExecutionContext,
  descriptor: ImageDescriptor,
  node: BlockNode,
  seed: number,
  options: { base?: number; delays: boolean },
): Promise<Hammered> {
  const { base, delays } = options;
  const random = new Random(seed);
  const { pieced, shared } = layout(random);
  const start = new SharedArrayBuffer(8);
  const plans: HammerPlan[] = [];
  for (let index = 0; index < THREADS; index++) {
    const plan = { threads: THREADS, index, piece: PIECE, pieced, cluster: CLUSTER };
    const model = new SharedArrayBuffer(piecesOf(plan) * PIECE);
    const bytes = new Uint8Array(model);
    for (let number = 0; base !== undefined && number < piecesOf(plan); number++) {
      const { offset, at } = pieceOf(plan, number);
      fillPattern(bytes, at, offset, PIECE, base);
    }
    plans.push({
      ...plan,
      descriptor,
      thread: 2 + index,
      seed,
      operations: OPERATIONS,
      shared,
      model,
      start,
      base,
      delays,
    });
  }
  const results = plans.map(
    (plan) =>
      new Promise<string | undefined>((resolve, reject) => {
        const worker = new Worker(path.join(__dirname, 'hammer-worker.js'), { workerData: plan });
        t.teardown(() => worker.terminate());
        worker.once('message', (message: { problem?: string }) => resolve(message.problem));
        worker.once('error', reject);
      }),
  );
  const words = new Int32Array(start);
  while (Atomics.load(words, 0) < THREADS) {
    await Promise.race([...results, new Promise((resolve) => setImmediate(resolve))]);
  }
  Atomics.store(words, 1, 1);
  Atomics.notify(words, 1);
  // This thread is the flusher meanwhile, and time flies.
  let running = true;
  const all = Promise.all(results).finally(() => {
    running = false;
  });
  for (let hours = 1; running; hours++) {
    maintain(node, Date.now() + hours * 3_600_000);
    await Promise.race([all.catch(() => undefined), new Promise((resolve) => setTimeout(resolve, 3))]);
  }
  return { plans, problems: (await all).filter((problem): problem is string => problem !== undefined) };
}

function compareAll(t: ExecutionContext, node: BlockNode, plans: HammerPlan[], when: string): void {
  const bytes = new Uint8Array(PIECE);
  let wrong = 0;
  for (const plan of plans) {
    const model = new Uint8Array(plan.model);
    for (let number = 0; number < piecesOf(plan); number++) {
      const { offset, at } = pieceOf(plan, number);
      node.read(offset, bytes, 0, PIECE);
      if (Buffer.compare(bytes, model.subarray(at, at + PIECE)) !== 0) wrong++;
    }
  }
  t.is(wrong, 0, `${when}: pieces that are not as their owner left them`);
  const { shared, base, pieced } = plans[0];
  const cluster = new Uint8Array(CLUSTER);
  for (const offset of shared) {
    node.read(offset, cluster, 0, CLUSTER);
    const problem = misplaced(cluster, offset, CLUSTER, base);
    if (problem !== undefined) t.fail(`${when}: ${problem}`);
  }
  // What is left of the pieced clusters belongs to nobody.
  const used = Math.floor(CLUSTER / PIECE / THREADS) * THREADS * PIECE;
  for (const start of pieced) {
    node.read(start + used, cluster, 0, CLUSTER - used);
    const expected =
      base === undefined ? new Uint8Array(CLUSTER - used) : patternBytes(start + used, CLUSTER - used, base);
    if (Buffer.compare(cluster.subarray(0, CLUSTER - used), expected) !== 0)
      t.fail(`${when}: bytes at ${start + used} that nobody wrote`);
  }
}

const IN_MEMORY: Omit<ImageSpec, 'size'>[] = [
  { format: 'qed', clusterSize: CLUSTER, tableSize: 1 },
  { format: 'qcow2', clusterSize: CLUSTER },
];

for (const [index, spec] of IN_MEMORY.entries()) {
  test(`threads in memory, ${spec.format}: no update is lost, no block is read as another one`, async (t) => {
    const seed = seedOf(t, 700 + index);
    const storage = createInMemory({ ...spec, size: SIZE }, 64 * MIB);
    const chain = openChainOf([storage], { threads: 2 + THREADS });
    const { plans, problems } = await hammer(t, chain.descriptor, chain.node, seed, { delays: true });
    t.deepEqual(problems, []);
    compareAll(t, chain.node, plans, 'before closing');
    const { fileEnd, forgotten } = chain.node.layer.state;
    t.log(`file of ${Math.round(fileEnd / KIB)} KiB, ${forgotten} bytes forgotten`);
    chain.finish();
    compareAll(t, openChainOf([storage], { readOnly: true }).node, plans, 'after closing');
    const result = checkStorage(storage);
    t.deepEqual([result.corruptions, result.checkErrors], [0, 0], result.messages.join('; '));
    t.is(result.leaks * CLUSTER, forgotten);
  });
}

const ON_FILES: { spec: Omit<ImageSpec, 'size'>; backed: boolean }[] = [
  { spec: { format: 'qed', clusterSize: CLUSTER, tableSize: 1 }, backed: false },
  { spec: { format: 'qed', clusterSize: CLUSTER, tableSize: 1 }, backed: true },
  { spec: { format: 'qcow', clusterSize: CLUSTER }, backed: false },
  { spec: { format: 'qcow', clusterSize: 512 }, backed: true },
  { spec: { format: 'qcow2', clusterSize: CLUSTER, refcountBits: 64 }, backed: false },
  { spec: { format: 'qcow2', clusterSize: 16 * KIB, extendedL2: true }, backed: true },
];

for (const [index, { spec, backed }] of ON_FILES.entries()) {
  const words = `${spec.format}${spec.extendedL2 ? ' with subclusters' : ''}${backed ? ' over a base' : ''}`;
  test(`threads on a file, ${words}: no update is lost, no block is read as another one`, async (t) => {
    const seed = seedOf(t, 710 + index);
    const directory = temporaryDirectory(t);
    const file = path.join(directory, 'a.img');
    const base = path.join(directory, 'base.qed');
    if (backed) {
      createImage(base, { format: 'qed', size: SIZE });
      const lower = open(base, { threads: 1 });
      const { pieced, shared } = layout(new Random(seed));
      for (const offset of [...pieced, ...shared])
        lower.node.write(offset, patternBytes(offset, CLUSTER, BASE_TAG), 0, CLUSTER);
      lower.close();
    }
    const backing = backed ? { name: 'base.qed' } : undefined;
    createImage(file, { ...spec, size: SIZE, backing });
    const image = open(file, { threads: 2 + THREADS });
    let closed = false;
    t.teardown(() => {
      if (!closed) image.close();
    });
    const { plans, problems } = await hammer(t, image.describe(), image.node, seed, {
      base: backed ? BASE_TAG : undefined,
      delays: false,
    });
    t.deepEqual(problems, []);
    compareAll(t, image.node, plans, 'before closing');
    closed = true;
    image.close();
    const again = open(file, { readOnly: true });
    compareAll(t, again.node, plans, 'after closing');
    again.close();
    const result = checkFile(file);
    t.deepEqual([result.corruptions, result.checkErrors], [0, 0], result.messages.join('; '));
  });
}
