import test from 'ava';
import { KIB, MIB } from '../../../../src/units';
import { checkStorage, createInMemory, openChainOf } from '../../../helpers/images';
import { patternBytes } from '../../../helpers/random';

const CLUSTER = 4 * KIB;

test('a last cluster that is cut keeps what is written into its missing part, also when the file grows', (t) => {
  const storage = createInMemory({ format: 'qcow2', clusterSize: CLUSTER, size: 4 * MIB }, 8 * MIB);
  const first = openChainOf([storage]);
  first.node.write(0, patternBytes(0, CLUSTER, 1), 0, CLUSTER);
  first.finish();
  // As QEMU leaves it: the data cluster at the end of the file is there in part, the rest reads zero.
  storage.truncate(storage.size() - CLUSTER + 100, 'create');
  const chain = openChainOf([storage]);
  const bytes = patternBytes(0, 500, 3);
  chain.node.write(3000, bytes, 0, 500);
  for (let i = 1; i < 600; i++) chain.node.write(i * CLUSTER, patternBytes(i * CLUSTER, CLUSTER, 4), 0, CLUSTER);
  chain.finish();
  const got = new Uint8Array(500);
  openChainOf([storage]).node.read(3000, got, 0, 500);
  t.deepEqual(got, new Uint8Array(bytes));
  t.is(checkStorage(storage).corruptions, 0);
});
