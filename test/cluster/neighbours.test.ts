/**
 * Requests over three clusters of every kind each: written, zeroed, untouched over data, untouched over nothing. The ends of
 * a request lie inside its first and last cluster, which keep the rest of what they read as.
 */
import test from 'ava';
import { KIB } from '../../src/units';
import { checkStorage, createInMemory, type ImageSpec, openChainOf } from '../helpers/images';
import { DiskModel } from '../helpers/model';
import { patternBytes } from '../helpers/random';
import { Shadowed } from '../helpers/shadowed';

const KINDS = ['data', 'zero', 'below', 'nothing'] as const;
const REQUESTS = ['write', 'zeroes', 'allocate'] as const;

interface Layout {
  name: string;
  spec: Omit<ImageSpec, 'size'>;
  cluster: number;
  /** First of the three clusters: 0, or so that the end of a table lies among them. */
  first: number;
  backed: boolean;
}

const qed = (clusterSize: number) => ({ format: 'qed', clusterSize, tableSize: 1 }) as const;
const LAYOUTS: Layout[] = [
  { name: 'qed 4 KiB', spec: qed(4 * KIB), cluster: 4 * KIB, first: 3, backed: true },
  { name: 'qed 4 KiB across two tables', spec: qed(4 * KIB), cluster: 4 * KIB, first: 510, backed: true },
  { name: 'qed 4 KiB alone', spec: qed(4 * KIB), cluster: 4 * KIB, first: 511, backed: false },
  // Too large to be put together in memory.
  { name: 'qed 128 KiB', spec: qed(128 * KIB), cluster: 128 * KIB, first: 1, backed: true },
];

for (const { name, spec, cluster, first, backed } of LAYOUTS) {
  test(`${name}: requests over three neighbours of any kinds change their own bytes only`, (t) => {
    const size = (first + 5) * cluster + 512;
    const backing = backed ? { name: 'base', format: 'raw' } : undefined;
    let cases = 0;
    for (let combination = 0; combination < KINDS.length ** 3 * REQUESTS.length; combination++) {
      const request = REQUESTS[Math.floor(combination / KINDS.length ** 3)];
      const kinds = [0, 1, 2].map((place) => KINDS[Math.floor(combination / KINDS.length ** place) % KINDS.length]);
      const storages = [createInMemory({ ...spec, size, backing }, 4 * size + 2048 * KIB)];
      const below = backed ? new DiskModel(size) : undefined;
      if (below !== undefined) {
        const base = createInMemory({ format: 'raw', size }, size);
        for (const [place, kind] of kinds.entries()) {
          if (kind === 'nothing') continue;
          const offset = (first + place) * cluster;
          base.write(offset, patternBytes(offset, cluster, 50), 0, cluster, 'create');
          below.write(offset, patternBytes(offset, cluster, 50));
        }
        storages.push(base);
      }
      const chain = openChainOf(storages);
      const shadow = new Shadowed(chain.node, new DiskModel(size, below));
      for (const [place, kind] of kinds.entries()) {
        const offset = (first + place) * cluster;
        if (kind === 'data') shadow.write(offset, cluster);
        if (kind === 'zero') shadow.writeZeroes(offset, cluster);
      }
      const from = first * cluster + 700;
      const length = 2 * cluster + 100;
      if (request === 'write') shadow.write(from, length);
      else if (request === 'zeroes') shadow.writeZeroes(from, length);
      else shadow.allocate(from, length);
      const problem = shadow.difference((first - 1) * cluster, 5 * cluster);
      if (problem !== undefined) {
        t.fail(`${request} over ${kinds}: ${problem}`);
        return;
      }
      cases++;
      chain.finish();
      shadow.node = openChainOf(storages, { readOnly: true }).node;
      t.is(shadow.difference((first - 1) * cluster, 5 * cluster), undefined, `${request} over ${kinds}, after closing`);
      t.deepEqual([checkStorage(storages[0]).corruptions, checkStorage(storages[0]).leaks], [0, 0]);
    }
    t.is(cases, 192);
  });
}
