/** Allocating writes of several threads into one cluster at the same moment: none of them is lost in another one's copy. */
import * as path from 'node:path';
import { Worker } from 'node:worker_threads';
import test from 'ava';
import { KIB, MIB } from '../../src/units';
import { checkStorage, createInMemory, type ImageSpec, openChainOf } from '../helpers/images';
import { LONG, patternBytes, seedOf } from '../helpers/random';
import type { MatesPlan } from './cluster-mates-worker';

const THREADS = 3;
const CLUSTERS = 64;
const ROUNDS = LONG ? 20_000 : 300;
const BASE_TAG = 5;

const KINDS: { spec: Omit<ImageSpec, 'size'>; cluster: number; backed: boolean }[] = [
  { spec: { format: 'qed', clusterSize: 4 * KIB, tableSize: 1 }, cluster: 4 * KIB, backed: false },
  { spec: { format: 'qed', clusterSize: 4 * KIB, tableSize: 1 }, cluster: 4 * KIB, backed: true },
  { spec: { format: 'qed', clusterSize: 64 * KIB, tableSize: 1 }, cluster: 64 * KIB, backed: true },
];

for (const [number, { spec, cluster, backed }] of KINDS.entries()) {
  const words = `${spec.format} ${cluster / KIB} KiB${backed ? ' over a base' : ''}`;
  test(`cluster-mates, ${words}: no update is lost in another one's copy-on-write`, async (t) => {
    const seed = seedOf(t, 800 + number);
    const size = CLUSTERS * cluster;
    const backing = backed ? { name: 'base', format: 'raw' } : undefined;
    const storages = [createInMemory({ ...spec, size, backing }, 24 * MIB)];
    if (backed) {
      const base = createInMemory({ format: 'raw', size }, size);
      base.write(0, patternBytes(0, size, BASE_TAG), 0, size, 'data-write');
      storages.push(base);
    }
    const chain = openChainOf(storages, { threads: 2 + THREADS });
    const barrier = new SharedArrayBuffer(8);
    const results = Array.from({ length: THREADS }, (_, index) => {
      const plan: MatesPlan = {
        descriptor: chain.descriptor,
        threads: THREADS,
        index,
        thread: 2 + index,
        seed,
        rounds: ROUNDS,
        cluster,
        clusters: CLUSTERS,
        barrier,
        base: backed ? BASE_TAG : undefined,
      };
      return new Promise<string | null>((resolve, reject) => {
        const worker = new Worker(path.join(__dirname, 'cluster-mates-worker.js'), { workerData: plan });
        t.teardown(() => worker.terminate());
        worker.once('message', resolve);
        worker.once('error', reject);
      });
    });
    t.deepEqual(await Promise.all(results), Array(THREADS).fill(null));
    chain.finish();
    const result = checkStorage(storages[0]);
    t.deepEqual([result.corruptions, result.checkErrors, result.leaks], [0, 0, 0], result.messages.join('; '));
  });
}
