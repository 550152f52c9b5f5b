/** Random programs that take, delete and rename snapshots and revert to them, over models of each snapshot's bytes. */
import test from 'ava';
import { createInMemory, openChainOf } from '../../helpers/images';
import { LONG, patternBytes, Random, seedOf } from '../../helpers/random';
import { checkSound, SUITE } from '../../helpers/snapshot-images';
import { SnapshotModel } from '../../helpers/snapshot-model';

const CAPACITY = 24 * 1024 * 1024;
const PROGRAMS = LONG ? 40 : 2;
/** Over all images: more than 100,000 operations in long runs, 3,000 in short ones. */
const STEPS = LONG ? 400 : 190;

for (const [index, { name, image, backing, size }] of SUITE.entries()) {
  test(`snapshots of ${name}: random programs`, (t) => {
    const random = new Random(seedOf(t, 8100 + index));
    for (let program = 0; program < PROGRAMS; program++) {
      const base = backing === undefined ? undefined : createInMemory({ format: 'raw', size: backing }, backing);
      base?.write(0, patternBytes(0, backing ?? 0, 99), 0, backing ?? 0, 'data-write');
      const named = base === undefined ? undefined : { name: 'base', format: 'raw' };
      const storage = createInMemory({ ...image, size, backing: named }, CAPACITY);
      const layers = base === undefined ? [storage] : [storage, base];
      let chain = openChainOf(layers);
      const options = {
        cluster: image.clusterSize ?? 65536,
        // At most three references; a revert needs one more for a moment.
        most: image.refcountBits === 2 ? 1 : 6,
        grows: image.version !== 2,
        plain: image.refcountBits === 2,
      };
      const model = new SnapshotModel(chain.node, random, options);
      const trace: string[] = [];
      const wrong = (problem: string) => t.fail(`program ${program}: ${problem}; ${trace.slice(-12).join(', ')}`);
      for (let step = 0; step < STEPS; step++) {
        trace.push(model.step());
        const problem = step % 8 === 7 || step > STEPS - 4 ? model.problem() : undefined;
        if (problem !== undefined) return wrong(problem);
        if (!random.chance(0.05)) continue;
        chain.finish();
        const unsound = checkSound(storage);
        if (unsound !== undefined) return wrong(`closed: ${unsound}`);
        trace.push('reopen');
        chain = openChainOf(layers);
        model.node = chain.node;
      }
      chain.finish();
      const problem = checkSound(storage) ?? model.problem(openChainOf(layers, { readOnly: true }).node);
      if (problem !== undefined) return wrong(problem);
    }
    t.pass();
  });
}
