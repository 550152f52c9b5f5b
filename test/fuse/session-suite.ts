/**
 * What every session must do, over a MemoryFileSystem in another process. One mount for all cases, which run one after the other;
 * `session-io-cases.ts` and `session-tree-cases.ts` have them.
 */
import type { TestFn } from 'ava';
import { type Server, skip, startServer, whyNot } from './harness';
import { registerIoCases } from './session-io-cases';
import { registerTreeCases } from './session-tree-cases';
import type { Case, SuiteOptions } from './suite-tools';

export function sessionSuite(test: TestFn, options: SuiteOptions): void {
  const undo: (() => void | Promise<void>)[] = [];
  let server: Server | undefined;
  let executed = 0;
  let impossible: string | undefined;

  test.before(async () => {
    impossible = await whyNot(options.session);
    if (impossible !== undefined) return;
    server = await startServer(
      { teardown: (step) => void undo.unshift(step) },
      { session: options.session, kernelCache: options.kernelCache ?? false },
    );
  });
  test.after.always(async () => {
    for (const step of undo) await step();
  });

  const name = options.kernelCache ? `${options.session} session with kernel_cache` : `${options.session} session`;
  const run = (title: string, body: Case): void => {
    test.serial(`${name}: ${title}`, async (t) => {
      if (server === undefined) return skip(t, impossible ?? 'not mounted');
      executed++;
      await body(t, server);
    });
  };

  registerIoCases(run, options);
  registerTreeCases(run, options);

  test.serial(`${name}: all ${options.cases} cases ran`, (t) => {
    if (server === undefined) return skip(t, impossible ?? 'not mounted');
    t.is(executed, options.cases);
    t.is(server.process.exitCode, null, server.stderr());
  });
}
