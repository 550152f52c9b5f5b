/** Images as others leave them: ends inside a cluster, stale bytes behind the end, sizes that are no multiple of anything. */
import test from 'ava';
import { KIB, MIB } from '../../src/units';
import { checkStorage, createInMemory, openChainOf } from '../helpers/images';
import { DiskModel } from '../helpers/model';
import { patternBytes } from '../helpers/random';
import { Shadowed } from '../helpers/shadowed';

const CLUSTER = 4 * KIB;
const SIZE = 3 * MIB + 512;

test('a file that ends inside a cluster: the stale part never shows in a new cluster', (t) => {
  for (const stale of [1, 511, 512, CLUSTER - 1]) {
    const storage = createInMemory({ format: 'qed', clusterSize: CLUSTER, tableSize: 1, size: SIZE }, 8 * MIB);
    const end = storage.size();
    storage.write(end, patternBytes(0, stale, 66), 0, stale, 'create');
    const chain = openChainOf([storage]);
    const shadow = new Shadowed(chain.node, new DiskModel(SIZE));
    t.is(shadow.differenceAnywhere(), undefined);
    // The first new place is the L2 table, the next one the data: stale bytes would be entries, or the rest of a cluster.
    shadow.write(CLUSTER + 2000, 10);
    t.is(shadow.differenceAnywhere(), undefined, `${stale} stale bytes`);
    chain.finish();
    shadow.node = openChainOf([storage], { readOnly: true }).node;
    t.is(shadow.differenceAnywhere(), undefined);
    t.deepEqual([checkStorage(storage).corruptions, checkStorage(storage).leaks], [0, 0]);
  }
});

test('whole clusters behind the last used one are left alone: their bytes never show', (t) => {
  const storage = createInMemory({ format: 'qed', clusterSize: CLUSTER, tableSize: 1, size: SIZE }, 8 * MIB);
  const end = storage.size();
  storage.write(end, patternBytes(0, 3 * CLUSTER + 100, 66), 0, 3 * CLUSTER + 100, 'create');
  const chain = openChainOf([storage]);
  const shadow = new Shadowed(chain.node, new DiskModel(SIZE));
  for (let at = 700; at < SIZE - 20; at += 3 * CLUSTER) shadow.write(at, 20);
  t.is(shadow.differenceAnywhere(), undefined);
  chain.finish();
  shadow.node = openChainOf([storage], { readOnly: true }).node;
  t.is(shadow.differenceAnywhere(), undefined);
  t.deepEqual([checkStorage(storage).corruptions, checkStorage(storage).leaks], [0, 3]);
});

test('resize(): what the last cluster holds behind the end of the disk never shows', (t) => {
  const storage = createInMemory({ format: 'qed', clusterSize: CLUSTER, tableSize: 1, size: SIZE }, 8 * MIB);
  const first = openChainOf([storage]);
  first.node.write(SIZE - 512, patternBytes(0, 512, 1), 0, 512);
  const { offset } = first.node.layerStatus(SIZE - 512, 512);
  first.finish();
  // Other programs copy whole clusters from longer backing files.
  storage.write((offset ?? 0) + 512, patternBytes(0, CLUSTER - 512, 66), 0, CLUSTER - 512, 'create');
  const chain = openChainOf([storage]);
  const shadow = new Shadowed(chain.node, new DiskModel(SIZE));
  shadow.model.write(SIZE - 512, patternBytes(0, 512, 1));
  shadow.resize(SIZE + 10 * CLUSTER);
  t.is(shadow.differenceAnywhere(), undefined);
});

test('an overlay reads zero past the end of a short backing file, also inside its last cluster', (t) => {
  for (const backingSize of [512, CLUSTER - 512, CLUSTER, 5 * CLUSTER + 1024]) {
    const backing = { name: 'base', format: 'raw' };
    const storage = createInMemory({ format: 'qed', clusterSize: CLUSTER, tableSize: 1, size: SIZE, backing }, 8 * MIB);
    const base = createInMemory({ format: 'raw', size: backingSize }, MIB);
    base.write(0, patternBytes(0, backingSize, 8), 0, backingSize, 'create');
    const below = new DiskModel(backingSize);
    below.write(0, patternBytes(0, backingSize, 8));
    const chain = openChainOf([storage, base]);
    const shadow = new Shadowed(chain.node, new DiskModel(SIZE, below));
    t.is(shadow.differenceAnywhere(), undefined);
    shadow.write(Math.max(0, backingSize - 700), 100);
    shadow.writeZeroes(Math.max(0, backingSize - 300), 200);
    t.is(shadow.differenceAnywhere(), undefined, `${backingSize} bytes below`);
    chain.finish();
  }
});
