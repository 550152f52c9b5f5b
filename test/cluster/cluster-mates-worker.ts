/** One of several threads that write beside each other into the same cluster at the same moment, cluster after cluster. */
import { parentPort, workerData } from 'node:worker_threads';
import { attachChain, type ImageDescriptor } from '../../src/block/open';
import { attachStorage } from '../../src/storage/attach';
import { DelayedStorage } from '../helpers/delayed-storage';
import { fillPattern, patternBytes, Random } from '../helpers/random';

export interface MatesPlan {
  descriptor: ImageDescriptor;
  threads: number;
  index: number;
  thread: number;
  seed: number;
  rounds: number;
  cluster: number;
  clusters: number;
  /** Words: arrivals at the barrier, rounds of the barrier. */
  barrier: SharedArrayBuffer;
  /** Tag of the backing file's pattern; without one untouched bytes are zero. */
  base?: number;
}

class Barrier {
  private readonly words: Int32Array;

  constructor(
    buffer: SharedArrayBuffer,
    private readonly threads: number,
  ) {
    this.words = new Int32Array(buffer);
  }

  wait(): void {
    const round = Atomics.load(this.words, 1);
    if (Atomics.add(this.words, 0, 1) + 1 === this.threads) {
      Atomics.store(this.words, 0, 0);
      Atomics.add(this.words, 1, 1);
      Atomics.notify(this.words, 1);
    } else {
      // A late notify of the round before may wake a thread that waits already for this one.
      while (Atomics.load(this.words, 1) === round) Atomics.wait(this.words, 1, round);
    }
  }
}

/**
 * In each round: all write their piece of one cluster, together; then all compare the whole cluster; then one thread
 * zeroes it, so that it is allocated again when its turn comes back.
 */
function run(plan: MatesPlan): string | undefined {
  const { cluster, threads, index, clusters } = plan;
  const random = new Random(plan.seed * 100 + index);
  const node = attachChain(plan.descriptor, plan.thread, (layer) => {
    return new DelayedStorage(attachStorage(layer), random, 0.1, 1);
  });
  const barrier = new Barrier(plan.barrier, threads);
  const piece = Math.floor(cluster / (threads + 1));
  const untouched = Array.from({ length: clusters }, () => plan.base !== undefined);
  const expected = new Uint8Array(cluster);
  const seen = new Uint8Array(cluster);
  let problem: string | undefined;
  for (let round = 0; round < plan.rounds; round++) {
    const number = (round * 7) % clusters;
    const start = number * cluster;
    barrier.wait();
    const own = patternBytes(start + index * piece, piece, round * threads + index);
    node.write(start + index * piece, own, 0, piece);
    barrier.wait();
    if (untouched[number]) fillPattern(expected, 0, start, cluster, plan.base ?? 0);
    else expected.fill(0);
    for (let i = 0; i < threads; i++) fillPattern(expected, i * piece, start + i * piece, piece, round * threads + i);
    node.read(start, seen, 0, cluster);
    // All stay to the end of their rounds: the others wait for them at the barrier.
    if (Buffer.compare(seen, expected) !== 0) {
      const at = seen.findIndex((byte, i) => byte !== expected[i]);
      problem ??= `round ${round}: byte ${at} of cluster ${number} (piece ${Math.floor(at / piece)} of ${threads}) is lost`;
    }
    barrier.wait();
    if (round % threads === index) {
      node.writeZeroes(start, cluster);
      if (round % 5 === 0) node.flush();
    }
    untouched[number] = false;
  }
  return problem;
}

if (parentPort !== null && workerData?.barrier !== undefined)
  parentPort.postMessage(run(workerData as MatesPlan) ?? null);
