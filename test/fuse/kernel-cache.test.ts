import test from 'ava';
import { sessionSuite } from './session-suite';

sessionSuite(test, {
  session: 'kernel',
  kernelCache: true,
  carries: { fallocate: true, lseek: true, syncOfOneWrite: true, sharedMapping: true },
  cases: 21,
});
