/**
 * Host operations that fail while the list of snapshots changes. Whatever fails: the change is done or not done, in memory as
 * in the file; no snapshot and no byte of the disk is another one; the image goes on, and a check finds leaks at the most.
 */
import test, { type ExecutionContext } from 'ava';
import { BlockError } from '../../src/errors';
import { FaultyStorage } from '../../src/storage/faulty';
import type { StorageEvent } from '../../src/storage/storage';
import { KIB } from '../../src/units';
import { checkStorage, createInMemory, type ImageSpec, openChainOf } from '../helpers/images';
import { Random, seedOf } from '../helpers/random';
import { SnapshotModel } from '../helpers/snapshot-model';

const CAPACITY = 4096 * KIB;
const SPEC: ImageSpec = { format: 'qcow2', clusterSize: 512, refcountBits: 32, size: 3000 * KIB };

type Operation = 'take' | 'delete' | 'revert' | 'rename';
const OPERATIONS: readonly Operation[] = ['take', 'delete', 'revert', 'rename'];
/** Failures after which everything goes on. */
const EVENTS: (StorageEvent | 'read')[] = [
  'read',
  'refcount-update',
  'refcount-allocate',
  'cluster-grow',
  'cluster-free',
  'l2-update',
  'l1-update',
  'snapshot-update',
  'header-update',
];
/** Failures that are final. */
const SYNCS: StorageEvent[] = ['flush-data', 'flush-l2', 'flush-header'];
/** The same operation is made to fail at this many places; a few of each sort, not every one of hundreds. */
const MOST = 6;

function prepared(random: Random) {
  const storage = createInMemory(SPEC, CAPACITY);
  let faulty: FaultyStorage | undefined;
  const chain = openChainOf([storage], {
    wrap: (below) => {
      faulty = new FaultyStorage(below);
      return faulty;
    },
  });
  const model = new SnapshotModel(chain.node, random, { cluster: 512, most: 3, grows: false });
  for (let step = 0; step < 30; step++) model.step();
  while (model.snapshots.length < 2) model.take();
  for (let step = 0; step < 5; step++) model.write();
  if (faulty === undefined) throw new Error('nothing was attached');
  return { storage, faulty, chain, model };
}

/** @returns whether the operation failed; the model follows what really happened */
function attempt(t: ExecutionContext, model: SnapshotModel, operation: Operation): boolean {
  const before = { live: model.live, snapshots: model.snapshots.map((snapshot) => ({ ...snapshot })) };
  try {
    model[operation]();
    return false;
  } catch (error) {
    t.true(error instanceof BlockError, String(error));
    model.live = before.live;
    model.snapshots = before.snapshots;
    return true;
  }
}

for (const [index, operation] of OPERATIONS.entries()) {
  test(`${operation}: after a failed host operation everything is as before, or done`, (t) => {
    const random = new Random(seedOf(t, 8500 + index));
    let failures = 0;
    for (const event of EVENTS) {
      for (let place = 0, fired = true; fired && place < MOST; place++) {
        const { storage, faulty, chain, model } = prepared(random);
        faulty.arm({ event, errno: 'EIO', after: place, once: true });
        const failed = attempt(t, model, operation);
        fired = faulty.fired > 0;
        faulty.heal();
        if (failed) failures++;
        const where = `${event} ${place}`;
        t.is(model.problem(), undefined, where);
        // It works the next time, and the disk goes on.
        if (failed) model[operation]();
        for (let step = 0; step < 10; step++) model.step();
        chain.finish();
        t.is(model.problem(openChainOf([storage], { readOnly: true }).node), undefined, `${where}, closed`);
        const { corruptions, checkErrors, messages } = checkStorage(storage);
        t.deepEqual([corruptions, checkErrors], [0, 0], `${where}: ${messages.join('; ')}`);
      }
    }
    t.true(failures >= 8, `${failures} failures`);
  });

  test(`${operation}: a failed sync is final, and nothing is lost by it`, (t) => {
    const random = new Random(seedOf(t, 8550 + index));
    for (const event of SYNCS) {
      for (let place = 0, fired = true; fired && place < MOST; place++) {
        const { storage, faulty, model } = prepared(random);
        model.node.flush();
        const before = model.snapshots.map(({ id }) => id);
        const live = model.live.slice();
        const bytes = new Map(model.snapshots.map((snapshot) => [snapshot.id, snapshot.bytes]));
        const firedBefore = faulty.fired;
        faulty.arm({ event, errno: 'EIO', after: place, once: true });
        const failed = attempt(t, model, operation);
        fired = faulty.fired > firedBefore;
        faulty.heal();
        if (!failed) continue;
        const where = `${event} ${place}`;
        t.throws(() => model.take(), { code: 'IO' }, where);
        // What is in the file now is one of the states that a power cut may leave.
        const again = openChainOf([storage], { readOnly: true }).node;
        const found = new SnapshotModel(again, random, { cluster: 512, most: 0, grows: false });
        for (const { id, bytes: content } of found.snapshots) {
          t.is(Buffer.compare(content, bytes.get(id) ?? live), 0, `${where}, snapshot ${id}`);
        }
        t.true(found.snapshots.length >= before.length - 1);
      }
    }
    t.pass();
  });
}
